#ifndef SLUICE_ROUTERS_EXPERT_SPT_SPT_H_
#define SLUICE_ROUTERS_EXPERT_SPT_SPT_H_
// A dense feed-forward network cut into blocks of its hidden neurons, of which a token computes a
// few: the routed FFN of SPT (arXiv 2312.10365).
//
//   SCORE   p = sigmoid(W_router x + b), one number a block
//   SELECT  the best m blocks; NaN never, ties to the lowest index. Ranked by the logit: in single
//           precision the sigmoid of several large ones is the same
//   own     y = W2[:, block] act(c (W1[block] x + b1[block]))
//   MERGE   b2 + sum of c y
//
// c = 1 (coefficient=one), so that m = blocks is the dense network, or 2 p (coefficient=trained),
// by which the published training reaches its router. Published code disagrees on m: a quarter of
// the blocks in one class, half in another. m is a setting here, half of 4 blocks unless said
// otherwise. Low-rank terms of fine-tuning are not read: they are not scaled by c, and fold into
// W1 and W2 where c is 1.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Items are tokens, hidden [items, dim] the network's input, which the units are run on too. Units
// are the blocks, slices of the two matrices as they lie, and after them b2, which every token has
// once and which costs nothing; all the router's own. O(items dim blocks), and m / blocks of the
// dense network.
class Spt {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/spt",
      .title = "SPT: Fine-Tuning Transformer-based Language Models Efficiently with Sparsification",
      .arxiv = "2312.10365",
      .domain = Domain::kExpert,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kToken,
      .learned = true,
      .reads = kReadsHidden,
      .full_budget = "m=0",
      .small_budget = "m=1",
  };

  enum class Coefficient : uint8_t { kOne, kTrained };
  // In the weights, under sluice.spt.activation.
  enum class Activation : uint8_t { kRelu, kSilu, kGelu };
  struct Config {
    int64_t layer = 0;
    int64_t m = 2;
    Coefficient coefficient = Coefficient::kOne;

    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose network it is");
      v("m", m, Range<int64_t>{0, 65536}, "blocks a token; 0: all of them");
      v("coefficient", coefficient, Choices{"one", "trained"},
        "of a block: 1, or twice its probability, before and after the activation");
    }
  };
  struct Plan : RoutePlanInfo {
    KExperts choose;
    size_t logits = 0;  // [workers, blocks]
  };

  static absl::StatusOr<Spt> Create(const Config& c, const WeightSource& w) {
    Spt r;
    r.config_ = c;
    SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int("sluice.spt.layers"));
    SLUICE_ASSIGN_OR_RETURN(r.dim_, w.Int("sluice.spt.dim"));
    SLUICE_ASSIGN_OR_RETURN(r.neurons_, w.Int("sluice.spt.neurons"));
    SLUICE_ASSIGN_OR_RETURN(r.blocks_, w.Int("sluice.spt.blocks"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t activation, w.Int("sluice.spt.activation"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t gated, w.Int("sluice.spt.gated"));
    if (c.layer >= layers)
      return absl::OutOfRangeError(
          absl::StrCat("layer=", c.layer, ", but the weights have ", layers, " layers"));
    SLUICE_RETURN_IF_ERROR(r.Check(activation, gated));
    r.activation_ = static_cast<Activation>(activation);

    const std::string at = Prefix(c);
    SLUICE_ASSIGN_OR_RETURN(r.router_, Linear::Read(w, at + "router", r.dim_, r.blocks_));
    SLUICE_ASSIGN_OR_RETURN(r.up_, Linear::Read(w, at + "up", r.dim_, r.neurons_));
    SLUICE_ASSIGN_OR_RETURN(r.down_, Linear::Read(w, at + "down", r.neurons_, r.dim_));
    if (gated == 1) {
      SLUICE_ASSIGN_OR_RETURN(r.gate_, Linear::Read(w, at + "gate", r.dim_, r.neurons_));
    }
    return r;
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    constexpr int64_t kBlocks = 4;
    constexpr int64_t kNeurons = 24;
    WeightKeys w;
    w.ints = {{"sluice.spt.layers", c.layer + 1}, {"sluice.spt.dim", s.hidden},
              {"sluice.spt.neurons", kNeurons},   {"sluice.spt.blocks", kBlocks},
              {"sluice.spt.activation", 0},       {"sluice.spt.gated", 0}};
    const std::string at = Prefix(c);
    w.AddLinear(at + "router", s.hidden, kBlocks);
    w.AddLinear(at + "up", s.hidden, kNeurons);
    w.AddLinear(at + "down", kNeurons, s.hidden);
    return w;
  }

  UnitInfo DescribeUnit(const Plan&, int64_t unit) const {
    return {.kind = UnitKind::kOwn,
            .cost = unit == blocks_ ? 0 : 1 / static_cast<double>(blocks_),
            .concurrency = Concurrency::kRows,
            .max_rows = kRows};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    if ((s.units != 0 && s.units != blocks_ + 1) || s.hidden != dim_)
      return absl::InvalidArgumentError(
          absl::StrCat("shape: ", s.units, " units, hidden ", s.hidden, "; wanted ", blocks_ + 1,
                       " units (or 0), a block each and the output's bias, and hidden ", dim_));
    Plan p;
    p.shape = s;
    p.shape.units = blocks_ + 1;
    WorkspaceLayout w;
    const int64_t m = config_.m == 0 ? blocks_ : config_.m;
    SLUICE_ASSIGN_OR_RETURN(p.choose, KExperts::Reserve(p.shape, m + 1, w));
    p.logits = w.Add<float>(blocks_ * std::max(1, s.workers));
    p.max_entries = p.choose.max_entries();
    p.workspace_bytes = w.bytes();
    p.unit_workspace_bytes =
        static_cast<size_t>(2 * kRows * block() +
                            kernels::GemmScratchFloats(std::max(dim_, block()))) *
        sizeof(float);
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(CheckTokens(in));
    p.choose.Run(
        in.items, ctx,
        [&](int64_t i, int worker, const pipeline::Scores& scores) {
          float* logits = ctx.workspace.At<float>(p.logits) + blocks_ * worker;
          router_.Apply(in.hidden.row(i), logits);
          int64_t nans = 0;
          for (int64_t b = 0; b < blocks_; ++b) {
            scores.rank[b] = logits[b];
            scores.weight[b] = Scale(logits[b]);
            nans += std::isnan(logits[b]);
          }
          const auto bias = static_cast<int32_t>(blocks_);
          scores.weight[bias] = 1;
          pipeline::Force(scores.rank, {&bias, 1});
          return nans;
        },
        [](absl::Span<float>) {}, out);
    return absl::OkStatus();
  }

  absl::Status RunUnit(const Plan&, const UnitRows& rows, const RunContext& ctx) const {
    const int64_t n = rows.in.rows;
    if (n > kRows || rows.in.cols != dim_ || rows.out.cols != dim_)
      return absl::InvalidArgumentError(absl::StrCat(kTraits.name, ": [", n, ", ", rows.in.cols,
                                                     "] to width ", rows.out.cols, "; at most ",
                                                     kRows, " rows of width ", dim_));
    if (rows.unit == blocks_) {
      for (int64_t r = 0; r < n; ++r) std::copy_n(down_.bias.data(), dim_, rows.out.row(r));
      return absl::OkStatus();
    }
    float* hidden = ctx.workspace.At<float>(0);
    float* gate = hidden + kRows * block();
    float* gemm = gate + kRows * block();
    Slice(up_, rows, hidden, gemm);
    if (gated()) Slice(gate_, rows, gate, gemm);
    for (int64_t r = 0; r < n; ++r) Activate(rows, r, hidden + r * block(), gate + r * block());

    const float* down = down_.weight.data() + rows.unit * block();
    kernels::GemmNT(hidden, block(), down, neurons_, n, dim_, block(), rows.out.data,
                    rows.out.row_stride, gemm);
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kRows = 64;
  static std::string Prefix(const Config& c) { return absl::StrCat("blk.", c.layer, ".spt."); }
  bool gated() const { return gate_.out > 0; }
  int64_t block() const { return neurons_ / blocks_; }

  absl::Status Check(int64_t activation, int64_t gated) const {
    constexpr int64_t kMost = 1 << 20;
    for (int64_t n : {dim_, neurons_, blocks_}) {
      if (n <= 0 || n > kMost)
        return absl::InvalidArgumentError(absl::StrCat("sluice.spt.dim ", dim_, ", neurons ",
                                                       neurons_, ", blocks ", blocks_,
                                                       "; allowed 1 to ", kMost));
    }
    if (neurons_ % blocks_ != 0)
      return absl::InvalidArgumentError(
          absl::StrCat(blocks_, " blocks do not divide ", neurons_, " neurons"));
    if (config_.m > blocks_)
      return absl::InvalidArgumentError(absl::StrCat("m=", config_.m, " of ", blocks_, " blocks"));
    if (activation < 0 || activation > 2 || gated < 0 || gated > 1)
      return absl::InvalidArgumentError(
          absl::StrCat("sluice.spt.activation ", activation, ", gated ", gated,
                       "; allowed 0 (ReLU), 1 (SiLU) or 2 (GELU), and 0 or 1"));
    if (gated == 1 && config_.coefficient == Coefficient::kTrained)
      return absl::InvalidArgumentError(
          "coefficient=trained is published for networks without a gate");
    return absl::OkStatus();
  }

  float Scale(float logit) const {
    if (config_.coefficient == Coefficient::kOne) return 1;
    return 2 / (1 + std::exp(-logit));
  }
  // y [n, block] = x W[block]^T + b[block].
  void Slice(const Linear& l, const UnitRows& rows, float* y, float* gemm) const {
    const int64_t first = rows.unit * block();
    kernels::GemmNT(rows.in.data, rows.in.row_stride, l.weight.data() + first * dim_, dim_,
                    rows.in.rows, block(), dim_, y, block(), gemm);
    for (int64_t r = 0; r < rows.in.rows; ++r) {
      for (int64_t j = 0; j < block(); ++j) y[r * block() + j] += l.bias[first + j];
    }
  }
  // hidden [block] of row r becomes what W2 is multiplied with.
  void Activate(const UnitRows& rows, int64_t r, float* hidden, const float* gate) const {
    float c = 1;
    if (config_.coefficient == Coefficient::kTrained) {
      const float* row = router_.weight.data() + rows.unit * dim_;
      c = Scale(kernels::Dot(rows.in.row(r), row, DType::kF32, dim_) + router_.bias[rows.unit]);
    }
    for (int64_t j = 0; j < block(); ++j) {
      if (gated()) {
        hidden[j] *= Act(gate[j]);
      } else {
        hidden[j] = Act(c * hidden[j]);
      }
    }
  }
  float Act(float z) const {
    if (activation_ == Activation::kRelu) return z < 0 ? 0.0f : z;
    if (activation_ == Activation::kSilu) return SiLU(z);
    return 0.5f * z * (1 + std::erf(z * 0.70710678f));
  }

  Config config_;
  int64_t dim_ = 0;
  int64_t neurons_ = 0;
  int64_t blocks_ = 0;
  Activation activation_ = Activation::kRelu;
  Linear router_;
  Linear up_;
  Linear gate_;  // of no outputs where the network has no gate
  Linear down_;
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_SPT_SPT_H_
