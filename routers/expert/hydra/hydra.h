#ifndef SLUICE_ROUTERS_EXPERT_HYDRA_HYDRA_H_
#define SLUICE_ROUTERS_EXPERT_HYDRA_HYDRA_H_
// One decision a chunk of tokens, from Hydra (arXiv 2508.15099): all tokens of a chunk go to the
// experts of the chunk. Its memory is product_key_memory.
//
//   SUM     a chunk's logits, of its
//             mean      tokens: as published, and later tokens decide for earlier ones
//             first     token
//             previous  chunk's tokens; the first chunk as prefix
//             prefix    tokens up to each: every token decides for itself
//   SCORE   logits / temperature
//   SELECT  the best k, weights softmax over the k; NaN never, ties to the lowest index
//
// The gate is linear, so the mean of the logits is the logit of the mean. first, previous and
// prefix (ours, not the paper's) are causal; pool=mean is for encoders and says so with
// non_causal_ok=true. A mean is over the tokens that there are: the prototype of the paper fills
// the last chunk with zeros and divides by its full length. A NaN logit is NaN in the whole chunk,
// and counted once a decision.
#include <algorithm>
#include <cstdint>

#include "sluice/api/router.h"
#include "sluice/routers/common/pipeline/gate.h"
#include "sluice/routers/common/pipeline/selector.h"
#include "sluice/routers/expert/common/k_experts.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Items are tokens; scores [items, units] the logits of the model's own gate; units are the
// experts, all the host's. Chunks are counted from position 0 of each sequence, where `positions`
// that do not rise begin another; without positions, from item 0 of the one sequence. A call begins
// at the beginning of a chunk: what went before in the chunk must be given again. O(items units),
// the selection once a chunk.
class Hydra {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "expert/hydra",
      .title =
          "Hydra: A 1.6B-Parameter State-Space Language Model with Sparse Attention, "
          "Mixture-of-Experts, and Memory",
      .arxiv = "2508.15099",
      .domain = Domain::kExpert,
      .combine = Combine::kWeightedSum,
      .decides = Decides::kChunk,
      .items_alone = false,
      .reads = kReadsScores,
      .may_read = kReadsPositions,
      .full_budget = "k=0",
      .small_budget = "k=1",
  };
  // `causal` holds unless pool=mean is asked for.

  enum class Pool : uint8_t { kFirst, kPrefix, kPrevious, kMean };
  struct Config {
    int64_t k = 2;
    int64_t chunk = 32;
    Pool pool = Pool::kFirst;
    double temperature = 1;
    bool non_causal_ok = false;

    template <class V>
    void VisitFields(V&& v) {
      v("k", k, Range<int64_t>{0, 65536}, "experts a chunk; 0: all of them");
      v("chunk", chunk, Range<int64_t>{1, 1 << 20}, "tokens a chunk; 1: every token for itself");
      v("pool", pool, Choices{"first", "prefix", "previous", "mean"},
        "what decides: the chunk's first token, its tokens so far, the chunk before, all its "
        "tokens");
      v("temperature", temperature, Range<double>{1e-6, 1e6}, "what logits are divided by");
      v("non_causal_ok", non_causal_ok, Range<bool>{false, true},
        "later tokens may decide for earlier ones, as pool=mean has them do");
    }
  };
  struct Plan : RoutePlanInfo {
    KExperts choose;
    size_t pooled = 0, sum = 0, begin = 0;                // [items, units], [units], [items + 1]
    size_t row_ptr = 0, unit = 0, weight = 0, score = 0;  // what the decisions choose
  };

  static absl::StatusOr<Hydra> Create(const Config& c) {
    if (c.pool == Pool::kMean && c.chunk > 1 && !c.non_causal_ok)
      return absl::InvalidArgumentError(
          "pool=mean lets later tokens decide for earlier ones: say non_causal_ok=true where that "
          "is "
          "allowed (an encoder), or take first, prefix or previous");
    Hydra r;
    r.config_ = c;
    return r;
  }

  UnitInfo DescribeUnit(const Plan& p, int64_t) const { return DescribeExpert(p); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    p.shape = s;
    WorkspaceLayout w;
    SLUICE_ASSIGN_OR_RETURN(p.choose, KExperts::Reserve(s, config_.k, w));
    p.max_entries = p.choose.max_entries();
    p.pooled = w.Add<float>(s.items * s.units);
    p.sum = w.Add<float>(s.units);
    p.begin = w.Add<int64_t>(s.items + 1);
    p.row_ptr = w.Add<int64_t>(s.items + 1);
    p.unit = w.Add<int32_t>(p.max_entries);
    p.weight = w.Add<float>(p.max_entries);
    p.score = w.Add<float>(p.max_entries);
    p.workspace_bytes = w.bytes();
    return p;
  }

  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    SLUICE_RETURN_IF_ERROR(CheckTokens(in));
    SLUICE_RETURN_IF_ERROR(CheckBegin(in));
    Decisions d = {&p, &in, ctx.workspace, 1 / static_cast<float>(config_.temperature)};
    ForEachSequence(in, [&](int64_t begin, int64_t end) { PoolSequence(begin, end, d); });
    d.begin()[d.count] = in.items;

    const Workspace& w = ctx.workspace;
    const auto entries = static_cast<size_t>(p.max_entries);
    Assignment chosen;
    chosen.items = d.count;
    chosen.units = p.shape.units;
    chosen.row_ptr = {w.At<int64_t>(p.row_ptr), static_cast<size_t>(p.shape.items) + 1};
    chosen.unit = {w.At<int32_t>(p.unit), entries};
    chosen.weight = {w.At<float>(p.weight), entries};
    chosen.score = {w.At<float>(p.score), entries};
    chosen.row_ptr[0] = 0;
    p.choose.Run(
        d.count, ctx,
        [&](int64_t i, int, const pipeline::Scores& scores) {
          return pipeline::ScoreRow(pipeline::ScoreKind::kLogit, d.row(i), {}, scores);
        },
        [](absl::Span<float> weight) {
          pipeline::NormaliseRow(pipeline::Renormalise::kSoftmax, 1, weight);
        },
        chosen);
    Spread(chosen, d.begin(), out);
    return absl::OkStatus();
  }

 private:
  // The rows that decide: row i for the tokens [begin[i], begin[i + 1]).
  struct Decisions {
    const Plan* plan;
    const RouteInputs* in;
    Workspace workspace;
    float scale;
    int64_t count = 0;

    int64_t* begin() const { return workspace.At<int64_t>(plan->begin); }
    float* row(int64_t i) const {
      return workspace.At<float>(plan->pooled) + i * plan->shape.units;
    }
    float* sum() const { return workspace.At<float>(plan->sum); }

    void ClearSum() { std::fill_n(sum(), plan->shape.units, 0.0f); }
    void AddToken(int64_t token) {
      const float* z = in->scores.row(token);
      for (int64_t u = 0; u < plan->shape.units; ++u) sum()[u] += z[u];
    }
    // What was added decides, as a mean over n tokens, from token `from` on.
    void Decide(int64_t from, int64_t n) {
      begin()[count] = from;
      for (int64_t u = 0; u < plan->shape.units; ++u)
        row(count)[u] = sum()[u] / static_cast<float>(n) * scale;
      ++count;
    }
  };

  int64_t ChunkOf(const RouteInputs& in, int64_t sequence_begin, int64_t token) const {
    const int64_t at = in.positions.empty() ? token - sequence_begin : in.positions[token];
    return at / config_.chunk;
  }

  absl::Status CheckBegin(const RouteInputs& in) const {
    absl::Status status;
    ForEachSequence(in, [&](int64_t begin, int64_t) {
      if (in.positions.empty() || in.positions[begin] % config_.chunk == 0 || !status.ok()) return;
      status = absl::InvalidArgumentError(
          absl::StrCat("a sequence begins at position ", in.positions[begin],
                       ", inside a chunk of ", config_.chunk, ": give the chunk's earlier tokens"));
    });
    return status;
  }

  void PoolSequence(int64_t begin, int64_t end, Decisions& d) const {
    Tokens previous;
    for (int64_t at = begin; at < end;) {
      Tokens chunk = {at, at + 1};
      const int64_t number = ChunkOf(*d.in, begin, at);
      while (chunk.end < end && ChunkOf(*d.in, begin, chunk.end) == number) ++chunk.end;
      PoolChunk(chunk, previous, d);
      previous = chunk;
      at = chunk.end;
    }
  }

  struct Tokens {
    int64_t begin = 0, end = 0;
  };
  void PoolChunk(Tokens chunk, Tokens previous, Decisions& d) const {
    const bool first_chunk = previous.begin == previous.end;
    d.ClearSum();
    if (config_.pool == Pool::kPrefix || (config_.pool == Pool::kPrevious && first_chunk)) {
      for (int64_t i = chunk.begin; i < chunk.end; ++i) {
        d.AddToken(i);
        d.Decide(i, i + 1 - chunk.begin);
      }
      return;
    }
    Tokens from = chunk;
    if (config_.pool == Pool::kPrevious) from = previous;
    if (config_.pool == Pool::kFirst) from.end = from.begin + 1;
    for (int64_t i = from.begin; i < from.end; ++i) d.AddToken(i);
    d.Decide(chunk.begin, from.end - from.begin);
  }

  // Every token gets what its decision chose.
  static void Spread(const Assignment& chosen, const int64_t* begin, Assignment& out) {
    out.nan_scores = chosen.nan_scores;
    int64_t to = 0;
    for (int64_t d = 0; d < chosen.items; ++d) {
      const int64_t from = chosen.row_ptr[d];
      const int64_t n = chosen.row_ptr[d + 1] - from;
      for (int64_t i = begin[d]; i < begin[d + 1]; ++i) {
        std::copy_n(chosen.unit.data() + from, n, out.unit.data() + to);
        std::copy_n(chosen.weight.data() + from, n, out.weight.data() + to);
        if (!out.score.empty()) std::copy_n(chosen.score.data() + from, n, out.score.data() + to);
        to += n;
        out.row_ptr[i + 1] = to;
      }
    }
  }

  Config config_;
};
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_HYDRA_HYDRA_H_
