#ifndef SLUICE_ROUTERS_ADAPTER_DYNAMIC_ROUTING_DYNAMIC_ROUTING_H_
#define SLUICE_ROUTERS_ADAPTER_DYNAMIC_ROUTING_DYNAMIC_ROUTING_H_
// Adapters of tasks that came one after the other, chosen token by token, beside a null expert that
// keeps what the base model can: "Dynamic Routing Between Experts", later "Routing-Based Continual
// Learning for Multimodal Large Language Models" (arXiv 2511.01831). Only its abstracts could be
// read; the form is inferred, after PHATGOOSE's gates.
//
//   SCORE   norm(x) . norm(prototype) / sqrt(width) / temperature, norm to mean 0 and variance 1
//           (centre=false: to mean square 1); the null expert's logit is a setting
//   SELECT  the best k; NaN never, ties to the lowest index, which is the null expert's; weights
//           softmax over the k, the null expert's share added to nothing
//   own     y = B A x of an adapter: what it adds to W x
//
// A task adds an adapter and a prototype, and changes no other's: Add and Remove. Whether old
// tokens then still go where they went is for forgetting.h to measure.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace adapter {
// Items are tokens, hidden [items, in] the input of the adapted layer, which the units are run on
// too. Unit 0 is the null expert, skipped; unit 1 + id is an adapter, the router's own.
// O(items in adapters), and O((in + out) rank) an adapter.
class DynamicRouting {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "adapter/dynamic_routing",
      .title = "Routing-Based Continual Learning for Multimodal Large Language Models",
      .arxiv = "2511.01831",
      .domain = Domain::kAdapter,
      .combine = Combine::kWeightedSum,  // of what is added to W x
      .decides = Decides::kToken,
      .learned = true,
      .reads = kReadsHidden,
      .small_budget = "null_logit=1000000",
  };

  struct Config {
    int64_t layer = 0;
    int64_t k = 2;
    double null_logit = 0;
    double temperature = 1;
    bool centre = true;

    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose adapters they are");
      v("k", k, Range<int64_t>{0, 65536},
        "adapters a token, the null expert among them; 0, or more than there are: all");
      v("null_logit", null_logit, Range<double>{-1e6, 1e6}, "of the null expert");
      v("temperature", temperature, Range<double>{1e-6, 1e6},
        "what adapters' logits are divided by");
      v("centre", centre, Range<bool>{false, true},
        "the mean is taken from tokens and prototypes before they are compared");
    }
  };
  struct Plan : RoutePlanInfo {
    expert::KExperts choose;
    size_t normed = 0;  // [workers, in]
  };
  // prototype [in]; down in -> rank, up rank -> out.
  struct Adapter {
    std::vector<float> prototype;
    Linear down, up;
  };

  // Without adapters: the base model alone.
  static absl::StatusOr<DynamicRouting> Base(const Config& c, int64_t in, int64_t out) {
    constexpr int64_t kMost = 1 << 20;
    if (in <= 0 || in > kMost || out <= 0 || out > kMost)
      return absl::InvalidArgumentError(
          absl::StrCat("a layer from ", in, " to ", out, "; allowed 1 to ", kMost));
    DynamicRouting r;
    r.config_ = c;
    r.in_ = in;
    r.out_ = out;
    return r;
  }
  static absl::StatusOr<DynamicRouting> Create(const Config& c, const WeightSource& w) {
    SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int("sluice.dynamic_routing.layers"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t in, w.Int("sluice.dynamic_routing.in"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t out, w.Int("sluice.dynamic_routing.out"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t adapters, w.Int("sluice.dynamic_routing.adapters"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t rank, w.Int("sluice.dynamic_routing.rank"));
    constexpr int64_t kMost = 1 << 16;
    if (c.layer >= layers)
      return absl::OutOfRangeError(
          absl::StrCat("layer=", c.layer, ", but the weights have ", layers, " layers"));
    if (adapters < 0 || adapters > kMost || rank <= 0 || rank > kMost)
      return absl::InvalidArgumentError(absl::StrCat("sluice.dynamic_routing.adapters ", adapters,
                                                     ", rank ", rank, "; allowed 1 to ", kMost,
                                                     ", and 0 adapters"));
    SLUICE_ASSIGN_OR_RETURN(DynamicRouting r, Base(c, in, out));
    for (int64_t id = 0; id < adapters; ++id) {
      const std::string at = Prefix(c, id);
      const uint64_t width[] = {static_cast<uint64_t>(in)};
      Adapter a;
      SLUICE_ASSIGN_OR_RETURN(a.prototype, w.ReadF32(at + "prototype", width));
      SLUICE_ASSIGN_OR_RETURN(a.down, Linear::ReadMatrix(w, at + "a.weight", in, rank));
      SLUICE_ASSIGN_OR_RETURN(a.up, Linear::ReadMatrix(w, at + "b.weight", rank, out));
      SLUICE_RETURN_IF_ERROR(r.Add(std::move(a)).status());
    }
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    constexpr int64_t kAdapters = 3;
    constexpr int64_t kRank = 2;
    WeightKeys w;
    w.ints = {{"sluice.dynamic_routing.layers", c.layer + 1},
              {"sluice.dynamic_routing.in", s.hidden},
              {"sluice.dynamic_routing.out", s.hidden},
              {"sluice.dynamic_routing.adapters", kAdapters},
              {"sluice.dynamic_routing.rank", kRank}};
    for (int64_t id = 0; id < kAdapters; ++id) {
      w.tensors.push_back({Prefix(c, id) + "prototype", {s.hidden}});
      w.tensors.push_back({Prefix(c, id) + "a.weight", {s.hidden, kRank}});
      w.tensors.push_back({Prefix(c, id) + "b.weight", {kRank, s.hidden}});
    }
    return w;
  }

  // The id of the new adapter: ids are never given again. Plans that were made before cannot be run
  // any more.
  absl::StatusOr<int64_t> Add(Adapter a) {
    if (std::ssize(a.prototype) != in_ || a.down.in != in_ || a.up.out != out_ ||
        a.down.out != a.up.in || a.down.out <= 0)
      return absl::InvalidArgumentError(absl::StrCat(
          "an adapter from ", a.down.in, " over ", a.down.out, " and ", a.up.in, " to ", a.up.out,
          " with a prototype of ", a.prototype.size(), "; wanted from ", in_, " to ", out_));
    if (!Norm(config_.centre, a.prototype.data(), in_, a.prototype.data()))
      return absl::InvalidArgumentError(
          "a prototype that is constant, or no number, is like no token");
    adapters_.push_back(std::move(a));
    return std::ssize(adapters_) - 1;
  }
  // The adapter is chosen no more; all others decide as if it had never been there.
  absl::Status Remove(int64_t id) {
    if (id < 0 || id >= std::ssize(adapters_) || removed(id))
      return absl::NotFoundError(absl::StrCat("no adapter ", id));
    adapters_[id] = {};
    return absl::OkStatus();
  }
  std::vector<int64_t> ids() const {
    std::vector<int64_t> all;
    for (int64_t id = 0; id < std::ssize(adapters_); ++id) {
      if (!removed(id)) all.push_back(id);
    }
    return all;
  }
  int64_t units() const { return 1 + std::ssize(adapters_); }

  // In what W x costs.
  UnitInfo DescribeUnit(const Plan&, int64_t unit) const {
    if (unit == 0 || removed(unit - 1)) return {UnitKind::kSkip, 0.0, Concurrency::kRows};
    const auto rank = static_cast<double>(adapters_[unit - 1].down.out);
    const auto in = static_cast<double>(in_);
    const auto out = static_cast<double>(out_);
    return {.kind = UnitKind::kOwn,
            .cost = std::min(1.0, rank * (in + out) / (in * out)),
            .concurrency = Concurrency::kRows,
            .max_rows = kRows};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    if ((s.units != 0 && s.units != units()) || s.hidden != in_)
      return absl::InvalidArgumentError(
          absl::StrCat("shape: ", s.units, " units, hidden ", s.hidden, "; wanted ", units(),
                       " units (or 0), the null expert and the adapters, and hidden ", in_));
    Plan p;
    p.shape = s;
    p.shape.units = units();
    WorkspaceLayout w;
    const int64_t k = config_.k == 0 ? units() : std::min(config_.k, units());
    SLUICE_ASSIGN_OR_RETURN(p.choose, expert::KExperts::Reserve(p.shape, k, w));
    p.normed = w.Add<float>(in_ * std::max(1, s.workers));
    p.max_entries = p.choose.max_entries();
    p.workspace_bytes = w.bytes();
    int64_t rank = 0;
    for (const Adapter& a : adapters_) rank = std::max(rank, a.down.out);
    p.unit_workspace_bytes =
        static_cast<size_t>(kRows * rank + kernels::GemmScratchFloats(std::max(in_, rank))) *
        sizeof(float);
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(expert::CheckTokens(in));
    if (p.shape.units != units())
      return absl::FailedPreconditionError(absl::StrCat(
          "a plan of ", p.shape.units, " units; adapters were added since, there are ", units()));
    p.choose.Run(
        in.items, ctx,
        [&](int64_t i, int worker, const pipeline::Scores& scores) {
          float* normed = ctx.workspace.At<float>(p.normed) + in_ * worker;
          return Score(in.hidden.row(i), normed, scores);
        },
        [](absl::Span<float> weight) {
          pipeline::NormaliseRow(pipeline::Renormalise::kSoftmax, 1, weight);
        },
        out);
    return absl::OkStatus();
  }

  absl::Status RunUnit(const Plan&, const UnitRows& rows, const RunContext& ctx) const {
    if (rows.in.rows > kRows || rows.in.cols != in_ || rows.out.cols != out_)
      return absl::InvalidArgumentError(absl::StrCat(
          kTraits.name, ": [", rows.in.rows, ", ", rows.in.cols, "] to width ", rows.out.cols,
          "; at most ", kRows, " rows of width ", in_, " to width ", out_));
    const Adapter& a = adapters_[rows.unit - 1];
    float* hidden = ctx.workspace.At<float>(0);
    float* gemm = hidden + kRows * a.down.out;
    a.down.ApplyRows(rows.in.data, rows.in.rows, hidden, gemm);
    a.up.ApplyRows(hidden, rows.in.rows, rows.out.data, gemm);
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kRows = 64;
  static std::string Prefix(const Config& c, int64_t id) {
    return absl::StrCat("blk.", c.layer, ".dynamic_routing.", id, ".");
  }
  bool removed(int64_t id) const { return adapters_[id].prototype.empty(); }

  // y [n] = x of mean 0 (where centred) and mean square 1; false where it does not vary or is no
  // number, and y then 0 or no number. y may be x.
  static bool Norm(bool centre, const float* x, int64_t n, float* y) {
    double sum = 0;  // exact, so that what is constant is found to be
    for (int64_t c = 0; c < n; ++c) sum += static_cast<double>(x[c]);
    const double mean = centre ? sum / static_cast<double>(n) : 0;
    double square = 0;
    for (int64_t c = 0; c < n; ++c) {
      const double off = static_cast<double>(x[c]) - mean;
      square += off * off / static_cast<double>(n);
    }
    const double by = square == 0 ? 0 : 1 / std::sqrt(square);
    for (int64_t c = 0; c < n; ++c)
      y[c] = static_cast<float>((static_cast<double>(x[c]) - mean) * by);
    return std::isfinite(square) && square > 0;
  }

  int64_t Score(const float* x, float* normed, const pipeline::Scores& scores) const {
    Norm(config_.centre, x, in_, normed);
    const auto scale =
        static_cast<float>(1 / (std::sqrt(static_cast<double>(in_)) * config_.temperature));
    scores.rank[0] = static_cast<float>(config_.null_logit);
    int64_t nans = 0;
    for (int64_t id = 0; id < std::ssize(adapters_); ++id) {
      float& logit = scores.rank[id + 1];
      logit = pipeline::kNever;
      if (removed(id)) continue;
      logit = scale * kernels::Dot(normed, adapters_[id].prototype.data(), DType::kF32, in_);
      nans += std::isnan(logit);
    }
    std::copy(scores.rank.begin(), scores.rank.end(), scores.weight.begin());
    return nans;
  }

  Config config_;
  int64_t in_ = 0;
  int64_t out_ = 0;
  std::vector<Adapter> adapters_;  // by id; of no prototype: removed
};
}  // namespace adapter
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ADAPTER_DYNAMIC_ROUTING_DYNAMIC_ROUTING_H_
