#ifndef SLUICE_ROUTERS_ATTENTION_FLEX_PREFILL_FLEX_PREFILL_H_
#define SLUICE_ROUTERS_ATTENTION_FLEX_PREFILL_FLEX_PREFILL_H_
// FlexPrefill: every head chooses by itself between blocks and lines, and how many. Training-free,
// for prefill.
//
//   SCORE   probabilities of the last queries of a segment, summed by key and by distance; and, to
//           compare, softmax of their mean times the mean of each block of keys
//   SELECT  how to go on: where the square root of the Jensen-Shannon divergence of the two, by
//           block, is below tau, the means may be trusted, else the lines are followed
//     blocks  mean query blocks times mean key blocks, softmax; of all pairs of the segment the
//             fewest that hold the share gamma
//     lines   the fewest columns, and the fewest slashes, that hold the share gamma each
//   ATTEND  a list a query head and 64 queries: their blocks or lines, the first keys and the last
//           ones, causal; a slash is the keys at its distance from any of the 64 queries
//
// As recalled, not checked: natural logarithms; means over rows that sum to one each, all pairs
// then being ranked together (pairs=joint: one softmax over all pairs); the least budget is of
// columns, of slashes and, rounded up to blocks, of a query block's blocks. The element that
// crosses gamma is kept; the published count takes one more where a sum is gamma exactly.
// Ours: the published rule has the whole prompt for one segment, which no prompt that comes in
// chunks can follow; segments make chunks of whole segments the same as one call. Segments with few
// queries, decode above all, are dense. A query with a NaN among its logits has no say in lines; a
// mean with a NaN speaks for no block. Ties go to the first keys and blocks and to the longest
// distances.
//
// Planning costs last / segment of QK^T, and the means 1 / block^2 of it. Scratch: 4 bytes a worker
// for each of `last` queries and each key. State: one mean a block of keys and KV head.
#include "sluice/api/config.h"
#include "sluice/routers/attention/common/sum.h"
#include "sluice/routers/attention/common/vertical_slash.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class FlexPrefill {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "flex_prefill",
      .title =
          "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient "
          "Long-Sequence Inference",
      .arxiv = "2502.20766",
      .chunk_invariant = false,  // a segment, usually of more than 64 queries, shares its lines
      .full_budget = "gamma=1",
      .small_budget = "block=64,segment=64,last=16,tau=1,gamma=0.2,min_budget=0,local=16"};

  enum class Pairs : uint8_t { kRows, kJoint };
  struct Config {
    int64_t block = 128;
    double tau = 0.1;
    double gamma = 0.9;
    int64_t min_budget = 512;
    Guards guards = {.sink = 4, .local = 64};
    int64_t last = 128;
    int64_t segment = 512;
    Pairs pairs = Pairs::kRows;
    int64_t least_queries = 16;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{64, 1024},
        "queries and keys per block, a multiple of 64 and a divisor of segment");
      v("tau", tau, Range<double>{0, 1},
        "divergence below which a head takes blocks; 0: always lines, 1: always blocks");
      v("gamma", gamma, Range<double>{0, 1}, "share of the probability that is kept");
      v("min_budget", min_budget, Range<int64_t>{0, kEverything},
        "least number of columns, of slashes, and of keys in a query block's blocks");
      v("sink", guards.sink, Range<int64_t>{0, kEverything}, "first keys always kept");
      v("local", guards.local, Range<int64_t>{1, kEverything},
        "last keys always kept, the query's own included");
      v("last", last, Range<int64_t>{1, 4096}, "queries at a segment's end that are looked at");
      v("segment", segment, Range<int64_t>{64, kEverything},
        "queries that share what is found; 2147483648: all of a call, as published");
      v("pairs", pairs, Choices{"rows", "joint"},
        "what the softmax of blocks is taken over: a query block's pairs (recalled), or all");
      v("least_queries", least_queries, Range<int64_t>{1, 1024},
        "segments of fewer queries are dense (inferred); 1: none");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    BlockMeans::Layout means;
    LineSums::Layout lines;
    Scratch<float> query, mean, pairs, gemm;
    Scratch<uint32_t> ids, row_ids;
    Scratch<std::byte> select;
  };

  static absl::StatusOr<FlexPrefill> Create(const Config& c) {
    if (c.block % kTile != 0 || c.segment % c.block != 0) {
      return absl::InvalidArgumentError(absl::StrCat("block=", c.block, " must be a multiple of ",
                                                     kTile, " and divide segment=", c.segment));
    }
    SLUICE_RETURN_IF_ERROR(CheckSegment(c.segment, c.last, c.least_queries));
    return FlexPrefill(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.means = BlockMeans::AddTo(plan, s.kv_heads, config_.block, s.head_dim);
    plan.lines = LineSums::AddTo(plan, config_.last);
    const int64_t blocks = plan.means.blocks;
    const int64_t rows = CeilDiv(std::min(config_.segment, s.max_queries), config_.block);
    plan.query = plan.AddScratch<float>(s.head_dim);
    plan.mean = plan.AddScratch<float>(s.head_dim);
    plan.pairs = plan.AddScratch<float>(rows * blocks);
    plan.ids = plan.AddScratch<uint32_t>(rows * blocks);
    plan.row_ids = plan.AddScratch<uint32_t>(blocks);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.select = plan.AddScratch<std::byte>(std::max<int64_t>(
        kernels::TopPScratchBytes(rows * blocks), kernels::TopKScratchBytes(blocks)));
    AddSegmentBranch(plan);
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    BlockMeans means(state, plan.means);
    means.Append(in.k, *ctx.executor);

    return WriteSegments(config_.segment, plan, in, ctx, out, [&](const HeadSegment& s) {
      Route({plan, in, means, s});
    });
  }

 private:
  struct Call {
    const Plan& plan;
    const AttentionInputs& in;
    const BlockMeans& means;
    const HeadSegment& s;

    template <class T>
    T* operator[](Scratch<T> at) const {
      return s.scratch[at];
    }
  };
  explicit FlexPrefill(const Config& c) : config_(c) {}

  void Route(const Call& c) const {
    if (c.s.rows.count < config_.least_queries) {
      c.s.WriteDense();
      return;
    }
    const LineSums sums(c.plan.lines, c.in, c.s);
    if (Divergence(c, sums) < config_.tau) {
      WriteBlocks(c);
      return;
    }
    const Lines lines = sums.Fewest(config_.gamma, config_.min_budget);
    c.s.ForEachTile(c.s.rows, [&](TileRows, const TileQueries& q, PlanEntry* entries) {
      return lines.Write(config_.guards, q, entries);
    });
  }

  // score [blocks] of the rows' mean query; returns how many blocks.
  static int64_t ScoreBlocks(const Call& c, TileRows rows, float* score) {
    return ScoreMeans(c.in, rows, c.s.head, c.means, score, c[c.plan.query], c[c.plan.mean],
                      c[c.plan.gemm]);
  }

  // How far the means mislead: the square root of the Jensen-Shannon divergence between what the
  // last queries give to each block and what their mean query does. NaN where either is.
  double Divergence(const Call& c, const LineSums& sums) const {
    float* guess = c[c.plan.pairs];
    const int64_t blocks = ScoreBlocks(c, sums.rows(), guess);
    kernels::Softmax(guess, blocks);
    double total = 0;
    for (int64_t s = 0; s < sums.keys(); ++s) total += sums.column()[s];
    double divergence = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t end = std::min(sums.keys(), (b + 1) * config_.block);
      double truth = 0;
      for (int64_t s = b * config_.block; s < end; ++s) truth += sums.column()[s];
      divergence += Diverges(truth / total, guess[b]) + Diverges(guess[b], truth / total);
    }
    return std::sqrt(std::max(divergence / 2, 0.0));  // in this order NaN stays
  }
  static double Diverges(double p, double from) {
    return p == 0 ? 0 : p * std::log(2 * p / (p + from));
  }

  void WriteBlocks(const Call& c) const {
    float* pairs = c[c.plan.pairs];
    int64_t n = 0;
    ForEachBlock(c, [&](TileRows rows) {
      const int64_t blocks = ScoreBlocks(c, rows, pairs + n);
      if (config_.pairs == Pairs::kRows) kernels::Softmax(pairs + n, blocks);
      n += blocks;
    });
    if (config_.pairs == Pairs::kJoint) kernels::Softmax(pairs, n);

    const uint32_t* ids = c[c.plan.ids];
    const int64_t picked =
        kernels::TopP(pairs, n, static_cast<float>(config_.gamma), c[c.plan.ids], c[c.plan.select]);
    const uint32_t* const end = ids + picked;
    int64_t at = 0;  // of the query block's pairs
    ForEachBlock(c, [&](TileRows rows) {
      const int64_t blocks = CeilDiv(c.in.q_begin + rows.begin + rows.count, config_.block);
      const uint32_t* begin = ids;
      ids = std::find_if(begin, end, [&](uint32_t id) { return id >= at + blocks; });
      WriteRow(c, rows, pairs + at, blocks, {begin, ids}, at);
      at += blocks;
    });
  }
  template <class Body>
  void ForEachBlock(const Call& c, Body&& body) const {
    const int64_t end = c.s.rows.begin + c.s.rows.count;
    for (int64_t at = c.s.rows.begin; at < end; at += config_.block)
      body(TileRows{at, std::min(config_.block, end - at)});
  }

  // The rows of a query block: the blocks of `ids`, which count from `zero`, or the best ones where
  // these are too few.
  void WriteRow(const Call& c, TileRows rows, const float* score, int64_t blocks,
                std::pair<const uint32_t*, const uint32_t*> ids, int64_t zero) const {
    const int64_t least = std::min(blocks, CeilDiv(config_.min_budget, config_.block));
    if (ids.second - ids.first < least) {
      uint32_t* best = c[c.plan.row_ids];
      const int64_t n = kernels::TopK(score, blocks, least, best, c[c.plan.select]).count;
      ids = {best, best + n};
      zero = 0;
    }
    c.s.ForEachTile(rows, [&](TileRows, const TileQueries& q, PlanEntry* entries) {
      RunWriter runs(config_.guards, q, entries);
      for (const uint32_t* id = ids.first; id < ids.second; ++id)
        runs.Add((*id - zero) * config_.block, (*id - zero + 1) * config_.block);
      return runs.Finish();
    });
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_FLEX_PREFILL_FLEX_PREFILL_H_
