#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "sluice/api/check.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/lab/compare/compare.h"
#include "sluice/runtime/lab/evaluate/statistics.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
// What comes from memory at best, by reading more than any cache holds.
double BytesPerSecond(int threads) {
  const auto executor = MakeTbbExecutor(threads);
  const std::vector<float> large(size_t{16} << 20, 1.0f);
  double best = HUGE_VAL;
  volatile float sink = 0;
  for (int r = 0; r < 5; ++r) {
    const auto from = std::chrono::steady_clock::now();
    std::vector<float> sums(static_cast<size_t>(executor->num_workers()) * 16);
    executor->ParallelFor(static_cast<int64_t>(large.size()), 1 << 18,
                          [&](int64_t begin, int64_t end, int worker) {
                            float s[8] = {};
                            for (int64_t i = begin; i + 8 <= end; i += 8) {
                              for (int64_t j = 0; j < 8; ++j) s[j] += large[i + j];
                            }
                            sums[static_cast<size_t>(worker) * 16] +=
                                s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
                          });
    for (float s : sums) sink = sink + s;
    best = std::min(best,
                    std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count());
  }
  return static_cast<double>(large.size() * sizeof(float)) / best;
}
}  // namespace

namespace {
// Router of the attentions, a chunk at a time, in the model and not beside it: between two
// attentions run matrix products, whose threads linger and whose data fills the caches.
absl::StatusOr<std::vector<MeasuredPlan>> MeasureChunks(const host::Model& model,
                                                        host::EngineOptions o, const char* router,
                                                        const WorkShape& shape,
                                                        const std::vector<int32_t>& tokens) {
  std::vector<MeasuredPlan> chunks;  // means over the layers
  const double share = 1 / static_cast<double>(model.shape.layers);
  o.router = router;
  o.max_tokens = static_cast<int64_t>(tokens.size());
  o.quality_stride = 0;
  o.on_plan = [&](int64_t layer, const AttentionPlan& plan, double seconds) {
    if (layer == 0) chunks.emplace_back();
    PlanWork w = WorkOf(plan, shape);
    w.macs *= share;
    w.panel_bytes *= share;
    w.items *= share;
    w.bytes *= share;
    chunks.back().work.Add(w);
    chunks.back().seconds += seconds * share;
  };
  SLUICE_ASSIGN_OR_RETURN(const auto engine, host::Engine::Create(model, o));
  for (int pass = 0; pass < 2; ++pass) {  // the first one warms up
    engine->Reset();
    chunks.clear();
    SLUICE_RETURN_IF_ERROR(engine->Feed(tokens, static_cast<int64_t>(tokens.size()) - 1));
  }
  return chunks;
}
}  // namespace

absl::StatusOr<AttentionClock> AttentionClock::Create(const host::Model& model,
                                                      const host::EngineOptions& options) {
  AttentionClock c;
  c.shape_ = {static_cast<int>(model.shape.head_dim), static_cast<int>(model.shape.head_dim),
              DTypeBytes(options.cache, 1), 8};
  std::vector<int32_t> tokens(std::min<int64_t>(3072, model.shape.context));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(RandomUniform({17, 0, 0, 0, i}) *
                                     static_cast<double>(model.shape.vocab));
  std::vector<MeasuredPlan> measured;
  for (const char* router : {"dense", "sink_window:sink=64,window=192", "sink_window:window=768",
                             "mean_pool:k=6", "dsa:k=96"}) {
    SLUICE_ASSIGN_OR_RETURN(const auto chunks,
                            MeasureChunks(model, options, router, c.shape_, tokens));
    measured.insert(measured.end(), chunks.begin(), chunks.end());
  }
  SLUICE_ASSIGN_OR_RETURN(c.rates_, FitMachine(measured, BytesPerSecond(options.threads)));
  c.tokens_.assign(tokens.begin(), tokens.begin() + static_cast<int64_t>(tokens.size() / 2));
  c.sums_ = std::make_unique<double[]>(2);
  host::EngineOptions o = options;
  o.router = "dense";
  o.max_tokens = static_cast<int64_t>(c.tokens_.size());
  o.quality_stride = 0;
  o.on_plan = [sums = c.sums_.get(), rates = c.rates_, shape = c.shape_](
                  int64_t, const AttentionPlan& plan, double seconds) {
    sums[0] += seconds;
    sums[1] += rates.Seconds(WorkOf(plan, shape));
  };
  SLUICE_ASSIGN_OR_RETURN(c.probe_, host::Engine::Create(model, o));
  return c;
}
absl::Status AttentionClock::Probe() {
  sums_[0] = sums_[1] = 0;
  probe_->Reset();
  SLUICE_RETURN_IF_ERROR(probe_->Feed(tokens_, static_cast<int64_t>(tokens_.size()) - 1));
  recent_.push_back(sums_[0] / sums_[1]);
  if (recent_.size() > 5) recent_.erase(recent_.begin());
  pace_ = Median(recent_);  // one probe is short, and may meet a hiccup
  return absl::OkStatus();
}
double AttentionClock::Seconds(const AttentionPlan& plan) const {
  return pace_ * rates_.Seconds(WorkOf(plan, shape_));
}
}  // namespace lab
SLUICE_END_NAMESPACE
