#ifndef SLUICE_ROUTERS_ATTENTION_MINFERENCE_MINFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_MINFERENCE_MINFERENCE_H_
// MInference: every head follows one of three patterns, which was found for it beforehand.
// Training-free, for prefill.
//
//   a_shape/S/L         the first S keys and the last L
//   vertical_slash/V/S  SCORE   probabilities of a segment's last queries, summed by key and by
//                               distance
//                       SELECT  the V best columns and the S best slashes, guards first
//   block_sparse/K      SCORE   mean query of a block of queries times the mean of each block of
//                               keys
//                       SELECT  the K best blocks, the query block's own first
//   ATTEND  a list a query head and 64 queries, causal; a slash is the keys at its distance from
//           any of the 64 queries, and the last L keys are those before any of them
//
// The patterns come from a search of equal cost over the model's heads, which is not done here; one
// text serves all layers, and per_layer(minference:... | minference:...) gives each its own.
// Recalled, not checked, and therefore settings: the guards of vertical_slash (30 first columns,
// 100 last distances), which count in V and S; blocks of 64. Inferred: that a block of queries
// keeps its own block. Ours: the published rule has the whole prompt for one segment, which no
// prompt that comes in chunks can follow; segments make chunks of whole segments the same as one
// call. Segments with few queries, decode above all, are dense. A query with a NaN among its logits
// has no say in lines; a mean with a NaN speaks for no block. Ties go to the first keys and blocks
// and to the longest distances.
//
// Planning costs last / segment of QK^T a head of vertical_slash, 1 / 4096 of it a head of
// block_sparse and nothing a head of a_shape. Scratch: 4 bytes a worker for each of `last` queries
// and each key. State: one mean a block of keys and KV head.
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "sluice/api/config.h"
#include "sluice/routers/attention/common/select.h"
#include "sluice/routers/attention/common/sum.h"
#include "sluice/routers/attention/common/vertical_slash.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class MInference {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "minference",
      .title =
          "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse "
          "Attention",
      .arxiv = "2407.02490",
      .chunk_invariant = false,  // a segment, usually of more than 64 queries, shares its lines
      .full_budget = "patterns=vertical_slash/2147483648/0",
      .small_budget = "patterns=vertical_slash/30/33,sink=4,local=32,last=32,segment=64"};

  struct Config {
    std::string patterns = "vertical_slash/512/512";
    Guards guards = {.sink = 30, .local = 100};
    int64_t last = 64;
    int64_t segment = 512;
    int64_t least_queries = 16;
    template <class V>
    void VisitFields(V&& v) {
      v("patterns", patterns, Text{1 << 16},
        "of every query head, ';' between heads, one serves all: a_shape/SINK/WINDOW, "
        "vertical_slash/COLUMNS/SLASHES or block_sparse/BLOCKS");
      v("sink", guards.sink, Range<int64_t>{0, kEverything}, "first columns of vertical_slash");
      v("local", guards.local, Range<int64_t>{1, kEverything},
        "shortest distances of vertical_slash, 0 included");
      v("last", last, Range<int64_t>{1, 4096}, "queries at a segment's end that are looked at");
      v("segment", segment, Range<int64_t>{64, kEverything},
        "queries that share lines, a multiple of 64; 2147483648: all of a call, as published");
      v("least_queries", least_queries, Range<int64_t>{1, 1024},
        "segments of fewer queries are dense (inferred); 1: none");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    BlockMeans::Layout means;
    LineSums::Layout lines;
    Scratch<float> query, mean, scores, gemm;
    Scratch<std::byte> select;
  };

  static absl::StatusOr<MInference> Create(const Config& c) {
    if (c.segment % kTile != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("segment=", c.segment, " is not a multiple of ", kTile));
    }
    SLUICE_RETURN_IF_ERROR(CheckSegment(c.segment, c.last, c.least_queries));
    MInference made;
    made.config_ = c;
    for (absl::string_view head : absl::StrSplit(c.patterns, ';')) {
      SLUICE_ASSIGN_OR_RETURN(const Pattern pattern, ReadPattern(head));
      made.patterns_.push_back(pattern);
    }
    return made;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    if (patterns_.size() != 1 && std::ssize(patterns_) != s.heads) {
      return absl::InvalidArgumentError(absl::StrCat("minference: ", patterns_.size(),
                                                     " patterns, but the model has ", s.heads,
                                                     " query heads"));
    }
    Plan plan(s);
    plan.means = BlockMeans::AddTo(plan, s.kv_heads, kTile, s.head_dim);
    plan.lines = LineSums::AddTo(plan, config_.last);
    plan.query = plan.AddScratch<float>(s.head_dim);
    plan.mean = plan.AddScratch<float>(s.head_dim);
    plan.scores = plan.AddScratch<float>(plan.means.blocks);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.select = AddSelectScratch(plan, plan.means.blocks);
    AddSegmentBranch(plan);
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    BlockMeans means(state, plan.means);
    means.Append(in.k, *ctx.executor);

    return WriteSegments(config_.segment, plan, in, ctx, out,
                         [&](const HeadSegment& s) { Route(plan, in, means, s); });
  }

 private:
  enum class Kind : uint8_t { kAShape, kVerticalSlash, kBlockSparse };
  struct Pattern {
    Kind kind = Kind::kAShape;
    int64_t a = 0;
    int64_t b = 0;
  };
  static absl::StatusOr<Pattern> ReadPattern(absl::string_view text) {
    const std::vector<absl::string_view> parts = absl::StrSplit(text, '/');
    Pattern p;
    size_t numbers = 2;
    bool read = true;
    if (parts[0] == "vertical_slash") {
      p.kind = Kind::kVerticalSlash;
    } else if (parts[0] == "block_sparse") {
      p.kind = Kind::kBlockSparse;
      numbers = 1;
    } else {
      read = parts[0] == "a_shape";
    }
    read = read && parts.size() == numbers + 1 && absl::SimpleAtoi(parts[1], &p.a) &&
           (numbers == 1 || absl::SimpleAtoi(parts[2], &p.b));
    const bool fits = std::min(p.a, p.b) >= 0 && std::max(p.a, p.b) <= kEverything &&
                      (p.kind != Kind::kAShape || p.b > 0);
    if (read && fits) return p;
    return absl::InvalidArgumentError(absl::StrCat(
        "patterns: '", text,
        "' is not a_shape/SINK/WINDOW with a window of at least 1, vertical_slash/COLUMNS/SLASHES "
        "or block_sparse/BLOCKS of numbers in [0, ",
        kEverything, "]"));
  }

  void Route(const Plan& plan, const AttentionInputs& in, const BlockMeans& means,
             const HeadSegment& s) const {
    const Pattern& p = patterns_.size() == 1 ? patterns_[0] : patterns_[s.head];
    if (s.rows.count < config_.least_queries) {
      s.WriteDense();
    } else if (p.kind == Kind::kAShape) {
      s.WriteGuards({.sink = p.a, .local = p.b});
    } else if (p.kind == Kind::kVerticalSlash) {
      const LineSums sums(plan.lines, in, s);
      const Lines lines = sums.Best(p.a, p.b, config_.guards);
      s.ForEachTile(s.rows, [&](TileRows, const TileQueries& q, PlanEntry* entries) {
        return lines.Write(config_.guards, q, entries);
      });
    } else {
      s.ForEachTile(s.rows, [&](TileRows rows, const TileQueries& q, PlanEntry* entries) {
        const int64_t blocks =
            ScoreMeans(in, rows, s.head, means, s.scratch[plan.scores], s.scratch[plan.query],
                       s.scratch[plan.mean], s.scratch[plan.gemm]);
        return WriteBlocks(p.a, s.scratch[plan.scores], blocks, q, s.scratch[plan.select], entries);
      });
    }
  }

  // Writes a tile's row of its k best blocks; score [blocks] is overwritten.
  static int64_t WriteBlocks(int64_t k, float* score, int64_t blocks, const TileQueries& q,
                             std::byte* scratch, PlanEntry* out) {
    const int64_t own = q.first / kTile;
    uint32_t* ids = reinterpret_cast<uint32_t*>(scratch);
    const int64_t picked = PickBlocks({.k = k, .tau = HUGE_VAL, .sink = 0, .local = 1}, score,
                                      blocks, own, ids, ids + CeilDiv(blocks, 16) * 16);
    RunWriter runs({.sink = 0, .local = q.first - own * kTile + 1}, q, out);
    for (int64_t i = 0; i < picked; ++i)
      runs.Add(int64_t{ids[i]} * kTile, (int64_t{ids[i]} + 1) * kTile);
    return runs.Finish();
  }

  Config config_;
  std::vector<Pattern> patterns_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_MINFERENCE_MINFERENCE_H_
