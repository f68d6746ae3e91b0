#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "sluice/routers/expert/small_thinker/early_gate.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/lab/evaluate/trained.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr int64_t kFitWindows = 12;
constexpr int64_t kOverlapWindows = 4;
constexpr double kRidge = 1e-3;
constexpr double kWithin = 0.02;  // of the model's perplexity: our bar for "can be retrofitted"

// What a layer's gates could read of every token, and what the model's own said.
struct GateSamples {
  std::vector<float> entering;   // [tokens, width], as it enters the layer
  std::vector<float> attention;  // [tokens, width], what attention is given
  std::vector<float> late;       // [tokens, experts], the logits of the gate after attention
};

// Gates at the place before attention, on the bundled Mixture of Experts that has its own after it.
class EarlyGates {
 public:
  EarlyGates(const host::Model& model, const EvaluateOptions& o) : model_(model), o_(o) {}
  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(Load());
    SLUICE_RETURN_IF_ERROR(Fit());
    SLUICE_RETURN_IF_ERROR(MeasureOverlap());
    return MeasurePerplexity();
  }

 private:
  using Gates = std::vector<std::vector<float>>;  // [experts, width] a layer

  absl::Status Load() {
    const host::ModelShape& m = model_.shape;
    if (m.experts == 0 || m.early_gate())
      return absl::InvalidArgumentError(
          absl::StrCat("the model has ", m.experts == 0 ? "no experts" : "its gates there already",
                       "; allowed: a Mixture of Experts whose gates stand after attention"));
    SLUICE_ASSIGN_OR_RETURN(FitText text, ReadFitText(o_, kFitWindows, kOverlapWindows));
    held_ = std::move(text.held);
    Note("observing");
    SLUICE_ASSIGN_OR_RETURN(fitted_on_, Observe(text.fit));
    SLUICE_ASSIGN_OR_RETURN(
        unseen_, Observe({held_.begin(), held_.begin() + kOverlapWindows * kTextWindow}));
    ClearNote();
    return absl::OkStatus();
  }

  // Layer by layer, so that what enters each is at hand.
  absl::StatusOr<std::vector<GateSamples>> Observe(const std::vector<int32_t>& tokens) const {
    const host::ModelShape& m = model_.shape;
    std::vector<GateSamples> seen(static_cast<size_t>(m.layers));
    host::EngineOptions o;
    o.threads = o_.threads;
    o.max_tokens = kTextWindow;
    std::vector<float> logits(static_cast<size_t>(m.experts));
    o.observe = [&](int64_t layer, int64_t unit, int64_t n, const float* h, const float*) {
      GateSamples& s = seen[static_cast<size_t>(layer)];
      if (unit == 0) {
        s.attention.insert(s.attention.end(), h, h + n * m.width);
        return;
      }
      for (int64_t i = 0; i < n; ++i) {
        Apply(model_.layers[static_cast<size_t>(layer)].expert_gate, h + i * m.width, logits);
        s.late.insert(s.late.end(), logits.begin(), logits.end());
      }
    };
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model_, o));
    std::vector<float> x(static_cast<size_t>(kTextWindow * m.width));
    for (int64_t at = 0; at + kTextWindow <= std::ssize(tokens); at += kTextWindow) {
      for (int64_t i = 0; i < kTextWindow; ++i)
        std::copy_n(&model_.embed[tokens[at + i] * m.width], m.width, &x[i * m.width]);
      for (int64_t layer = 0; layer < m.layers; ++layer) {
        std::vector<float>& entering = seen[static_cast<size_t>(layer)].entering;
        entering.insert(entering.end(), x.begin(), x.end());
        SLUICE_RETURN_IF_ERROR(e->RunLayerAlone(layer, kTextWindow, x.data()));
      }
    }
    return seen;
  }
  void Apply(const std::vector<float>& gate, const float* h, std::vector<float>& logits) const {
    const int64_t width = model_.shape.width;
    for (size_t e = 0; e < logits.size(); ++e)
      logits[e] = kernels::Dot(h, &gate[static_cast<int64_t>(e) * width], DType::kF32, width);
  }

  absl::Status Fit() {
    const host::ModelShape& m = model_.shape;
    for (int64_t layer = 0; layer < m.layers; ++layer) {
      Note(absl::StrCat("fitting, layer ", layer + 1));
      const auto at = static_cast<size_t>(layer);
      const GateSamples& s = fitted_on_[at];
      expert::EarlyGateFit entering(m.width, m.experts);
      expert::EarlyGateFit attention(m.width, m.experts);
      std::vector<int64_t> chosen(static_cast<size_t>(m.experts));
      const int64_t tokens = std::ssize(s.late) / m.experts;
      for (int64_t t = 0; t < tokens; ++t) {
        const float* late = &s.late[t * m.experts];
        entering.Add(&s.entering[t * m.width], late);
        attention.Add(&s.attention[t * m.width], late);
        for (int32_t e : expert::BestExperts(Logits(late), m.experts_used)) ++chosen[e];
      }
      SLUICE_ASSIGN_OR_RETURN(Linear before, entering.Solve(kRidge));
      SLUICE_ASSIGN_OR_RETURN(Linear normed, attention.Solve(kRidge));
      entering_.push_back(std::move(before.weight));
      attention_.push_back(std::move(normed.weight));
      moved_.push_back(Moved(model_.layers[at]));
      popular_.push_back(
          expert::BestExperts(std::vector<float>(chosen.begin(), chosen.end()), m.experts_used));
    }
    ClearNote();
    return absl::OkStatus();
  }
  // The model's own gate, for the state that attention is given: both norms differ by a factor a
  // channel.
  std::vector<float> Moved(const host::Layer& l) const {
    std::vector<float> gate = l.expert_gate;
    const size_t width = l.ffn_norm.size();
    for (size_t i = 0; i < gate.size(); ++i) {
      const float norm = l.attn_norm[i % width];
      gate[i] *= norm == 0 ? 0 : l.ffn_norm[i % width] / norm;
    }
    return gate;
  }
  absl::Span<const float> Logits(const float* of_token) const {
    return {of_token, static_cast<size_t>(model_.shape.experts)};
  }

  absl::Status MeasureOverlap() {
    const host::ModelShape& m = model_.shape;
    std::printf(
        "SmallThinker's early gate (arXiv 2507.20984) on a model that was trained with a late one: "
        "%lld experts, %lld a token\n"
        "share of the late gate's experts that a gate before attention names, %lld held-out "
        "tokens; "
        "fitted: least squares on %lld other tokens\n\n"
        "%-8s %10s %10s %12s %12s %10s\n",
        static_cast<long long>(m.experts), static_cast<long long>(m.experts_used),
        static_cast<long long>(kOverlapWindows * kTextWindow),
        static_cast<long long>(kFitWindows * kTextWindow), "layer", "as it is", "fitted",
        "fitted, raw", "most used", "by chance");
    const double chance = static_cast<double>(m.experts_used) / static_cast<double>(m.experts);
    std::vector<std::vector<double>> columns(4);
    for (int64_t layer = 0; layer < m.layers; ++layer) {
      const auto at = static_cast<size_t>(layer);
      const GateSamples& s = unseen_[at];
      const std::vector<double> row = {OverlapOf(s, s.attention, moved_[at]),
                                       OverlapOf(s, s.attention, attention_[at]),
                                       OverlapOf(s, s.entering, entering_[at]), OfPopular(layer)};
      for (size_t c = 0; c < row.size(); ++c) columns[c].push_back(row[c]);
      PrintRow("%-8d %10.3f %10.3f %12.3f %12.3f %10.3f\n", layer, row[0], row[1], row[2], row[3],
               chance);
    }
    PrintRow("%-8s %10.3f %10.3f %12.3f %12.3f %10.3f\n", "mean", Mean(columns[0]),
             Mean(columns[1]), Mean(columns[2]), Mean(columns[3]), chance);
    const auto above = [&](size_t a, size_t b) {
      bool all = true;
      for (size_t i = 0; i < columns[a].size(); ++i) all &= columns[a][i] > columns[b][i];
      return all;
    };
    std::printf(
        "B1 fitted above the gate as it is, in every layer: %s; B2 fitted above the most used "
        "experts, in every layer: %s\n\n",
        Verdict(above(1, 0)), Verdict(above(1, 3)));
    return absl::OkStatus();
  }
  double OverlapOf(const GateSamples& s, const std::vector<float>& state,
                   const std::vector<float>& gate) const {
    const host::ModelShape& m = model_.shape;
    std::vector<float> logits(static_cast<size_t>(m.experts));
    const int64_t tokens = std::ssize(s.late) / m.experts;
    int64_t same = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      Apply(gate, &state[t * m.width], logits);
      same += expert::Overlap(expert::BestExperts(logits, m.experts_used),
                              expert::BestExperts(Logits(&s.late[t * m.experts]), m.experts_used));
    }
    return static_cast<double>(same) / static_cast<double>(tokens * m.experts_used);
  }
  double OfPopular(int64_t layer) const {
    const host::ModelShape& m = model_.shape;
    const GateSamples& s = unseen_[static_cast<size_t>(layer)];
    const int64_t tokens = std::ssize(s.late) / m.experts;
    int64_t same = 0;
    for (int64_t t = 0; t < tokens; ++t)
      same += expert::Overlap(popular_[static_cast<size_t>(layer)],
                              expert::BestExperts(Logits(&s.late[t * m.experts]), m.experts_used));
    return static_cast<double>(same) / static_cast<double>(tokens * m.experts_used);
  }

  absl::Status MeasurePerplexity() {
    std::printf("%-44s %12s\n", "gates, which choose and weigh", "perplexity");
    const auto measure = [&](const std::string& name, const Gates* gates,
                             host::GateInput input) -> absl::StatusOr<double> {
      Note(name);
      host::Model with = model_;
      with.shape.gate_input = input;
      for (size_t i = 0; gates != nullptr && i < gates->size(); ++i)
        with.layers[i].expert_gate = (*gates)[i];
      SLUICE_ASSIGN_OR_RETURN(const double ppl, Perplexity(with));
      PrintRow("%-44s %12.3f\n", name, ppl);
      return ppl;
    };
    using host::GateInput;
    SLUICE_ASSIGN_OR_RETURN(const double late,
                            measure("late, the model's own", nullptr, GateInput::kFfn));
    SLUICE_ASSIGN_OR_RETURN(const double moved, measure("the model's own, before attention",
                                                        &moved_, GateInput::kAttention));
    SLUICE_ASSIGN_OR_RETURN(const double normed,
                            measure("fitted, of the normalised state before attention", &attention_,
                                    GateInput::kAttention));
    SLUICE_ASSIGN_OR_RETURN(const double raw, measure("fitted, of the state before any norm",
                                                      &entering_, GateInput::kEntering));
    std::vector<double> random;
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      const Gates drawn = RandomGates(seed);
      SLUICE_ASSIGN_OR_RETURN(const double ppl, measure(absl::StrCat("random, seed ", seed), &drawn,
                                                        GateInput::kAttention));
      random.push_back(ppl);
    }
    const double best = std::min(normed, raw);
    std::printf(
        "late %.3f, moved %.3f, fitted %.3f (raw %.3f), random %s\nB3 fitted below moved and below "
        "every random one: %s; B4 fitted within %.0f %% of late (%+.2f %%): %s\n",
        late, moved, normed, raw, MeanAndMargin(random, 3).c_str(),
        Verdict(best < moved && best < *std::min_element(random.begin(), random.end())),
        100 * kWithin, 100 * (best / late - 1), Verdict(best <= late * (1 + kWithin)));
    return absl::OkStatus();
  }
  Gates RandomGates(uint64_t seed) const {
    Gates gates = attention_;
    for (size_t layer = 0; layer < gates.size(); ++layer) {
      for (size_t i = 0; i < gates[layer].size(); ++i)
        gates[layer][i] = static_cast<float>(0.1 * RandomNormal({seed, 0, layer, 0, i}));
    }
    return gates;
  }
  absl::StatusOr<double> Perplexity(const host::Model& model) const {
    host::EngineOptions o;
    o.threads = o_.threads;
    o.max_tokens = kTextWindow;
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model, o));
    return WindowPerplexity(*e, held_);
  }

  const host::Model& model_;
  const EvaluateOptions& o_;
  std::vector<int32_t> held_;
  std::vector<GateSamples> fitted_on_, unseen_;  // a layer
  Gates entering_, attention_, moved_;           // for the state they are named by
  std::vector<std::vector<int32_t>> popular_;    // the most used experts of a layer
};
}  // namespace

absl::Status EvaluateSmallThinker(const host::Model& model, const EvaluateOptions& o) {
  return EarlyGates(model, o).Run();
}
}  // namespace lab
SLUICE_END_NAMESPACE
