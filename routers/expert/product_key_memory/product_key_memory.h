#ifndef SLUICE_ROUTERS_EXPERT_PRODUCT_KEY_MEMORY_PRODUCT_KEY_MEMORY_H_
#define SLUICE_ROUTERS_EXPERT_PRODUCT_KEY_MEMORY_PRODUCT_KEY_MEMORY_H_
// A memory of n1 * n2 slots that a token reads a few of (arXiv 1907.05242), with the gated residual
// of Hydra (arXiv 2508.15099).
//
//   SCORE   q1, q2 = halves of W_query x;  slot i * n2 + j scores keys1[i] . q1 + keys2[j] . q2
//   SELECT  the best t of each half, and all t * t pairs of them (choose=pairs), or the best t
//   pairs
//           of all (choose=best); weights softmax over them, times sigmoid(gate . x)
//   own     y = W_out value[slot]: a slot is a unit that the router computes
//   MERGE   x + sum of weight y
//
// The values are multiplied by W_out once, when the router is made: slots * width floats, 4 MiB for
// 64 * 64 slots of width 256. One gate a token (inferred: the paper's may be one a channel). NaN:
// a NaN score is in no pair and is counted, by halves; a token without pairs keeps its row. Ties go
// to the lowest slot.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/product_keys.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Items are tokens, hidden [items, dim] their states; units are the slots, all the router's own: a
// row of any width goes in, one of `dim` comes out. O(items (dim key + (n1 + n2) key + t^2)).
class ProductKeyMemory {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/product_key_memory",
      .title = "Large Memory Layers with Product Keys",
      .arxiv = "1907.05242",
      .domain = Domain::kExpert,
      .combine = Combine::kResidual,
      .decides = Decides::kToken,
      .learned = true,
      .reads = kReadsHidden,
      .full_budget = "t=0",
      .small_budget = "t=2",
  };

  enum class Choose : uint8_t { kPairs, kBest };
  struct Config {
    int64_t layer = 0;
    int64_t t = 4;
    Choose choose = Choose::kPairs;

    template <class V>
    void VisitFields(V&& v) {
      v("layer", layer, Range<int64_t>{0, 1 << 16}, "decoder layer whose memory it is");
      v("t", t, Range<int64_t>{0, 1024}, "best keys of each half; 0: all slots");
      v("choose", choose, Choices{"pairs", "best"}, "all t * t pairs of those, or the best t");
    }
  };
  struct Plan : RoutePlanInfo {
    pipeline::TopPairs select;
    size_t floats = 0, scratch = 0;  // of the workers
    int64_t scratch_bytes = 0;       // of one worker
    size_t count = 0, nans = 0;      // [items]
  };

  static absl::StatusOr<ProductKeyMemory> Create(const Config& c, const WeightSource& w) {
    ProductKeyMemory r;
    r.config_ = c;
    SLUICE_ASSIGN_OR_RETURN(const int64_t layers, w.Int("sluice.pkm.layers"));
    SLUICE_ASSIGN_OR_RETURN(r.dim_, w.Int("sluice.pkm.dim"));
    SLUICE_ASSIGN_OR_RETURN(r.n1_, w.Int("sluice.pkm.keys1"));
    SLUICE_ASSIGN_OR_RETURN(r.n2_, w.Int("sluice.pkm.keys2"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t key, w.Int("sluice.pkm.key"));
    SLUICE_ASSIGN_OR_RETURN(const int64_t value, w.Int("sluice.pkm.value"));
    if (c.layer >= layers)
      return absl::OutOfRangeError(
          absl::StrCat("layer=", c.layer, ", but the weights have ", layers, " layers"));
    SLUICE_RETURN_IF_ERROR(r.CheckSizes(key, value));

    const std::string at = Prefix(c);
    SLUICE_ASSIGN_OR_RETURN(r.query_, Linear::Read(w, at + "query", r.dim_, 2 * key));
    SLUICE_ASSIGN_OR_RETURN(r.keys1_, Linear::ReadMatrix(w, at + "keys1.weight", key, r.n1_));
    SLUICE_ASSIGN_OR_RETURN(r.keys2_, Linear::ReadMatrix(w, at + "keys2.weight", key, r.n2_));
    SLUICE_ASSIGN_OR_RETURN(r.gate_, Linear::Read(w, at + "gate", r.dim_, 1));
    return r.Fold(w, at, value);
  }
  static WeightKeys Weights(const Config& c, const RouteShape& s) {
    constexpr int64_t kKeys = 6;
    constexpr int64_t kKey = 8;
    constexpr int64_t kValue = 10;
    WeightKeys w;
    w.ints = {{"sluice.pkm.layers", c.layer + 1}, {"sluice.pkm.dim", s.hidden},
              {"sluice.pkm.keys1", kKeys},        {"sluice.pkm.keys2", kKeys},
              {"sluice.pkm.key", kKey},           {"sluice.pkm.value", kValue}};
    const std::string at = Prefix(c);
    w.AddLinear(at + "query", s.hidden, 2 * kKey);
    w.AddLinear(at + "gate", s.hidden, 1);
    w.AddLinear(at + "out", kValue, s.hidden);
    w.tensors.push_back({at + "keys1.weight", {kKey, kKeys}});
    w.tensors.push_back({at + "keys2.weight", {kKey, kKeys}});
    w.tensors.push_back({at + "values.weight", {kValue, kKeys * kKeys}});
    return w;
  }
  int64_t slots() const { return n1_ * n2_; }

  UnitInfo DescribeUnit(const Plan&, int64_t) const {
    return {UnitKind::kOwn, 1.0 / static_cast<double>(slots()), Concurrency::kRows};
  }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    if ((s.units != 0 && s.units != slots()) || s.hidden != dim_)
      return absl::InvalidArgumentError(absl::StrCat("shape: ", s.units, " units, hidden ",
                                                     s.hidden, "; wanted ", slots(),
                                                     " units (or 0) and hidden ", dim_));
    Plan p;
    p.shape = s;
    p.shape.units = slots();
    p.select = {n1_, n2_, best_of_half(), config_.choose == Choose::kBest};
    if (s.items > std::numeric_limits<int32_t>::max() / p.select.pairs())
      return absl::InvalidArgumentError(absl::StrCat(s.items, " items of ", p.select.pairs(),
                                                     " slots; allowed 2^31 - 1 entries"));
    const int64_t workers = std::max(1, s.workers);
    p.max_entries = s.items * p.select.pairs();
    WorkspaceLayout w;
    p.scratch_bytes = p.select.bytes();
    p.floats = w.Add<float>(floats() * workers);
    p.scratch = w.Add<std::byte>(p.scratch_bytes * workers);
    p.count = w.Add<int64_t>(s.items);
    p.nans = w.Add<int64_t>(s.items);
    p.workspace_bytes = w.bytes();
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(CheckTokens(in));
    ForEachPiece(in.items, p.shape.workers, ctx, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) ReadMemory(p, in, i, worker, ctx, out);
    });
    PackRows(in.items, p.select.pairs(), ctx.workspace.At<int64_t>(p.count),
             ctx.workspace.At<int64_t>(p.nans), out);
    return absl::OkStatus();
  }

  // A slot holds one row, whatever asks.
  absl::Status RunUnit(const Plan&, const UnitRows& rows, const RunContext&) const {
    if (rows.out.cols != dim_)
      return absl::InvalidArgumentError(absl::StrCat(kTraits.name, ": rows of width ",
                                                     rows.out.cols, ", the memory's have ", dim_));
    for (int64_t r = 0; r < rows.out.rows; ++r)
      std::copy_n(values_.data() + rows.unit * dim_, dim_, rows.out.row(r));
    return absl::OkStatus();
  }

 private:
  static std::string Prefix(const Config& c) { return absl::StrCat("blk.", c.layer, ".pkm."); }

  absl::Status CheckSizes(int64_t key, int64_t value) const {
    constexpr int64_t kMost = 1 << 16;
    for (int64_t n : {dim_, n1_, n2_, key, value}) {
      if (n <= 0 || n > kMost)
        return absl::InvalidArgumentError(absl::StrCat("sluice.pkm.dim ", dim_, ", keys1 ", n1_,
                                                       ", keys2 ", n2_, ", key ", key, ", value ",
                                                       value, "; allowed 1 to ", kMost));
    }
    if (slots() > (int64_t{1} << 30) / std::max(dim_, value))
      return absl::InvalidArgumentError(absl::StrCat(n1_, " x ", n2_, " slots of width ", dim_,
                                                     " and values of ", value,
                                                     "; allowed 2^30 numbers"));
    if (config_.t > std::min(n1_, n2_))
      return absl::InvalidArgumentError(
          absl::StrCat("t=", config_.t, " of ", n1_, " and ", n2_, " keys"));
    if (config_.t == 0 && n1_ != n2_)
      return absl::InvalidArgumentError(
          absl::StrCat("t=0 takes as many keys of both halves, not ", n1_, " and ", n2_));
    return absl::OkStatus();
  }

  // Multiplies every value by W_out and adds its bias: the weights of a token sum to its gate.
  absl::StatusOr<ProductKeyMemory> Fold(const WeightSource& w, const std::string& at,
                                        int64_t value) {
    const uint64_t shape[] = {static_cast<uint64_t>(value), static_cast<uint64_t>(slots())};
    SLUICE_ASSIGN_OR_RETURN(const Linear out, Linear::Read(w, at + "out", value, dim_));
    SLUICE_ASSIGN_OR_RETURN(const std::vector<float> values,
                            w.ReadF32(at + "values.weight", shape));
    std::vector<float> scratch(static_cast<size_t>(kernels::GemmScratchFloats(value)));
    values_.resize(static_cast<size_t>(slots() * dim_));
    out.ApplyRows(values.data(), slots(), values_.data(), scratch.data());
    return std::move(*this);
  }

  int64_t best_of_half() const { return config_.t == 0 ? n1_ : config_.t; }
  int64_t floats() const { return (query_.out + n1_ + n2_ + 15) / 16 * 16; }

  // The slots of one token, into its own places.
  void ReadMemory(const Plan& p, const RouteInputs& in, int64_t i, int worker,
                  const RunContext& ctx, Assignment& a) const {
    const Workspace& w = ctx.workspace;
    float* query = w.At<float>(p.floats) + floats() * worker;
    const absl::Span<float> first = {query + query_.out, static_cast<size_t>(n1_)};
    const absl::Span<float> second = {first.data() + n1_, static_cast<size_t>(n2_)};
    query_.Apply(in.hidden.row(i), query);
    keys1_.Apply(query, first.data());
    keys2_.Apply(query + keys1_.in, second.data());

    const int64_t at = i * p.select.pairs();
    const auto room = static_cast<size_t>(p.select.pairs());
    const absl::Span<float> weight = a.weight.subspan(static_cast<size_t>(at), room);
    std::byte* scratch = w.At<std::byte>(p.scratch) + p.scratch_bytes * worker;
    const int64_t n = p.select.Choose(first, second, scratch, a.unit.data() + at, weight.data());
    if (!a.score.empty()) std::copy_n(weight.data(), n, a.score.data() + at);

    float gate = 0;
    gate_.Apply(in.hidden.row(i), &gate);
    pipeline::NormaliseRow(pipeline::Renormalise::kSoftmax, 1 / (1 + std::exp(-gate)),
                           weight.first(static_cast<size_t>(n)));
    w.At<int64_t>(p.count)[i] = n;
    w.At<int64_t>(p.nans)[i] =
        std::count_if(first.data(), second.data() + n2_, [](float x) { return std::isnan(x); });
  }

  Config config_;
  int64_t dim_ = 0;
  int64_t n1_ = 0;
  int64_t n2_ = 0;
  Linear query_;
  Linear keys1_;
  Linear keys2_;
  Linear gate_;
  std::vector<float> values_;  // [slots, dim], multiplied by W_out
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_PRODUCT_KEY_MEMORY_PRODUCT_KEY_MEMORY_H_
