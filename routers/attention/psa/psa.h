#ifndef SLUICE_ROUTERS_ATTENTION_PSA_PSA_H_
#define SLUICE_ROUTERS_ATTENTION_PSA_PSA_H_
// PSA: instead of keeping or dropping a block of keys, read it at one of four resolutions.
// Training-free.
//
//   SUM     means of 2, 4 and 8 consecutive keys and of their values: a pyramid, appended as keys
//           arrive; only complete groups are ever read
//   SCORE   sampled queries against sampled keys of every block before the tile: a block's largest
//           logit, less the row's largest, exp, the largest over the rows, summing to 1
//   SELECT  blocks by falling importance: the first exact, then means of 2, of 4, of 8, the rest
//           skipped; ranges are ranks, or cumulative importance with the crossing block included
//   ATTEND  one softmax over keys and means, a mean of n keys with ln n added to its logit; the
//           first block and those that overlap the tile are exact
//
// A mean never overstates its keys' mass, and is exact where the keys are equal. The upstream draws
// sampled places anew for a call; here they are one of every `sample` at places fixed by `seed`.
// Upstream's causal path estimates importance by antidiagonals instead; the sampled estimate stands
// for both. Planning costs 1 / sample^2 of QK^T; state: 7/8 of the keys' and values' floats.
#include "sluice/routers/attention/common/perm.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/routers/attention/common/sum.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Psa {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "psa",
      .title = "PSA: Pyramid Sparse Attention for Efficient Video Understanding and Generation",
      .arxiv = "2512.04025",
      .reads_values = true,
      .full_budget = "to1=1,to2=1,to4=1,to8=1",
      .small_budget = "block=16,to1=0.1,to2=0.3,to4=0.5,to8=0.7"};

  enum class Assign : uint8_t { kRank, kMass };
  struct Config {
    int64_t block = 64;
    int64_t tile = 64;
    int64_t sample = 4;
    int64_t seed = 0;
    Assign assign = Assign::kRank;
    double to1 = 0.05;
    double to2 = 0.15;
    double to4 = 0.25;
    double to8 = 0.5;
    double min_exact = 0;
    int64_t sink = 1;
    bool similarity_cap = false;
    double similar2 = 0.75;
    double similar4 = 0.7;
    double similar8 = 0.7;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{8, 1024}, "keys per block, a multiple of 8");
      v("tile", tile, Range<int64_t>{1, 256}, "queries that share a list (upstream: 128)");
      v("sample", sample, Range<int64_t>{1, 64}, "one of so many queries and keys is scored");
      v("seed", seed, Range<int64_t>{0, kEverything}, "of the sampled places");
      v("assign", assign, Choices{"rank", "mass"},
        "what the ranges below are shares of: blocks, or importance (upstream, 14B: 0.4, 0.5, 0.6, "
        "0.8)");
      v("to1", to1, Range<double>{0, 1}, "end of the range of exact blocks");
      v("to2", to2, Range<double>{0, 1}, "end of the range of means of 2");
      v("to4", to4, Range<double>{0, 1}, "end of the range of means of 4");
      v("to8", to8, Range<double>{0, 1}, "end of the range of means of 8; the rest is skipped");
      v("min_exact", min_exact, Range<double>{0, 1},
        "share of blocks, and one more, that are exact at least; 0: off (upstream with mass: "
        "0.06)");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first blocks always exact");
      v("similarity_cap", similarity_cap, Range<bool>{false, true},
        "read no block at means of 2, 4 or 8 whose first and last keys of such groups are less "
        "alike than similar2, similar4 or similar8");
      v("similar2", similar2, Range<double>{-1, 1}, "least mean cosine of keys 1 apart");
      v("similar4", similar4, Range<double>{-1, 1}, "least mean cosine of keys 3 apart");
      v("similar8", similar8, Range<double>{-1, 1}, "least mean cosine of keys 7 apart");
    }
  };
  static constexpr int64_t kLevels = 4;  // means of 1, 2, 4 and 8 keys
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t blocks = 0;
    BlockMeans::Layout keys[kLevels], values[kLevels];
    State<uint8_t> cap;                // [kv_heads, blocks]: the coarsest level allowed
    Shared<float> log_count[kLevels];  // of a table's rows
    Shared<uint32_t> begin[kLevels], count[kLevels];
    Scratch<float> queries, sampled, products, best, importance, gemm;
    Scratch<uint32_t> order;
    Scratch<uint8_t> level;
  };

  static absl::StatusOr<Psa> Create(const Config& c) {
    if (c.block % 8 != 0)
      return absl::InvalidArgumentError(absl::StrCat("block=", c.block, " is no multiple of 8"));
    if (c.to1 > c.to2 || c.to2 > c.to4 || c.to4 > c.to8)
      return absl::InvalidArgumentError("to1, to2, to4 and to8 must not fall");
    const Config standard;
    if (!c.similarity_cap && (c.similar2 != standard.similar2 || c.similar4 != standard.similar4 ||
                              c.similar8 != standard.similar8))
      return absl::InvalidArgumentError("similarities are given, but similarity_cap is off");
    return Psa(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.blocks = CeilDiv(s.max_kv, config_.block);
    for (int64_t level = 1; level < kLevels; ++level) {
      const int64_t rows = CeilDiv(s.max_kv, int64_t{1} << level);
      plan.keys[level] = BlockMeans::AddTo(plan, s.kv_heads, 1 << level, s.head_dim);
      plan.values[level] = BlockMeans::AddTo(plan, s.kv_heads, 1 << level, s.value_dim);
      plan.log_count[level] = plan.AddShared<float>(rows);
      plan.begin[level] = plan.AddShared<uint32_t>(rows);
      plan.count[level] = plan.AddShared<uint32_t>(rows);
    }
    plan.cap = plan.AddState<uint8_t>(config_.similarity_cap ? s.kv_heads * plan.blocks : 0);
    const int64_t rows = CeilDiv(config_.tile, config_.sample);
    const int64_t columns = CeilDiv(config_.block, config_.sample);
    plan.queries = plan.AddScratch<float>(rows * s.head_dim);
    plan.sampled = plan.AddScratch<float>(std::max<int64_t>(columns, 2) * s.head_dim);
    plan.products = plan.AddScratch<float>(rows * columns);
    plan.best = plan.AddScratch<float>(rows * plan.blocks);
    plan.importance = plan.AddScratch<float>(plan.blocks);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.order = plan.AddScratch<uint32_t>(plan.blocks);
    plan.level = plan.AddScratch<uint8_t>(plan.blocks);
    plan.layout.max_tile = config_.tile;
    plan.layout.AddBranch(
        {.rows = s.heads * MaxTiles(s, config_.tile), .entry_slots = plan.blocks + 1});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    Begin(plan.shape, in, out);
    uint8_t tables[kLevels] = {};
    for (int64_t level = 1; level < kLevels; ++level) {
      BlockMeans keys(state, plan.keys[level]);
      BlockMeans values(state, plan.values[level]);
      keys.Append(in.k, *ctx.executor);
      values.Append(in.v, *ctx.executor);
      SLUICE_ASSIGN_OR_RETURN(tables[level], Publish(plan, in, ctx, level, keys, values, out));
    }
    if (config_.similarity_cap) CapLevels(plan, in, state, ctx);

    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch, out.AddBranch({.encoding = Encoding::kBlocks,
                                                                .scope = ListScope::kQueryHead,
                                                                .tile = config_.tile,
                                                                .block = config_.block}));
    ForEachRow(branch, plan, ctx, [&](int64_t head, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      const int64_t earlier = q.first / config_.block;  // blocks that end before the tile
      const int64_t visible = q.last / config_.block + 1;
      ScoreBlocks(plan, in, head, RowsOf(branch, tile), earlier, scratch);
      AssignLevels(plan, state, head, earlier, scratch);

      const int64_t row = branch.row_of(head, tile);
      PlanEntry* entries = branch.entries(row);
      const uint8_t* level = scratch[plan.level];
      int64_t n = 0;
      for (int64_t b = 0; b < earlier; ++b) {
        if (level[b] == 1) entries[n++] = ExactEntry(b, 1, MaskClass::kFull, b < config_.sink);
      }
      entries[n++] = ExactEntry(earlier, visible - earlier, MaskClass::kCausal, /*forced=*/true);
      for (int64_t l = 1; l < kLevels; ++l) {
        const int64_t rows = config_.block >> l;
        for (int64_t b = 0; b < earlier; ++b) {
          if (level[b] != 1 << l) continue;
          entries[n++] = {static_cast<uint32_t>(b * rows),
                          static_cast<uint32_t>(rows),
                          EntryState::kSummary,
                          MaskClass::kFull,
                          tables[l],
                          0};
        }
      }
      branch.set_count(row, n);
    });
    return absl::OkStatus();
  }

 private:
  explicit Psa(const Config& c) : config_(c) {}

  // Publishes the complete groups of a level.
  absl::StatusOr<uint8_t> Publish(const Plan& plan, const AttentionInputs& in,
                                  const RunContext& ctx, int64_t level, const BlockMeans& keys,
                                  const BlockMeans& values, PlanBuilder& out) const {
    const int64_t size = int64_t{1} << level;
    const int64_t rows = in.kv_len() / size;
    const auto n = static_cast<size_t>(rows);
    float* log_count = plan.Get(ctx, plan.log_count[level]);
    uint32_t* begin = plan.Get(ctx, plan.begin[level]);
    uint32_t* count = plan.Get(ctx, plan.count[level]);
    for (int64_t r = 0; r < rows; ++r) {
      log_count[r] = std::log(static_cast<float>(size));
      begin[r] = static_cast<uint32_t>(r * size);
      count[r] = static_cast<uint32_t>(size);
    }
    SummaryTable table;
    table.k = keys.View(rows);
    table.v = values.View(rows);
    table.log_count = {log_count, n};
    table.begin = {begin, n};
    table.count = {count, n};
    return out.AddTable(table);
  }

  // Places that stand for `count` consecutive ones: one of every `sample`, the same in every block.
  int64_t Place(int64_t i, int64_t count, uint64_t side) const {
    const RngKey key = {static_cast<uint64_t>(config_.seed), 0, 0, side, static_cast<uint64_t>(i)};
    const auto offset =
        static_cast<int64_t>(RandomBits(key) % static_cast<uint64_t>(config_.sample));
    return std::min(count - 1, i * config_.sample + offset);
  }

  // importance [blocks] of the blocks before a tile, -1 where all scores are NaN.
  void ScoreBlocks(const Plan& plan, const AttentionInputs& in, int64_t head, TileRows rows,
                   int64_t blocks, WorkerScratch scratch) const {
    const int64_t d = in.q.dim;
    const int64_t kv = head / GroupSize(plan.shape);
    const int64_t queries = CeilDiv(rows.count, config_.sample);
    const int64_t columns = CeilDiv(config_.block, config_.sample);
    for (int64_t i = 0; i < queries; ++i)
      ScaledQueries(in.q, {rows.begin + Place(i, rows.count, 0), 1}, head, in.scale,
                    scratch[plan.queries] + i * d);

    float* best = scratch[plan.best];  // [queries, blocks]
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t j = 0; j < columns; ++j)
        KeysAsFloat(in.k, kv, b * config_.block + Place(j, config_.block, 1), 1,
                    scratch[plan.sampled] + j * d);
      float* products = scratch[plan.products];
      ScoreDot(scratch[plan.queries], queries, scratch[plan.sampled], columns, d, products,
               scratch[plan.gemm]);
      for (int64_t i = 0; i < queries; ++i) {
        float most = products[i * columns];
        for (int64_t j = 1; j < columns; ++j) {
          const float x = products[i * columns + j];
          if (x > most || std::isnan(x)) most = x;
        }
        best[i * blocks + b] = most;
      }
    }

    float* importance = scratch[plan.importance];
    std::fill(importance, importance + blocks, -1.0f);
    for (int64_t i = 0; i < queries; ++i) {
      float most = -HUGE_VALF;
      for (int64_t b = 0; b < blocks; ++b) most = std::fmax(most, best[i * blocks + b]);
      for (int64_t b = 0; b < blocks; ++b) {
        const float x = std::exp(best[i * blocks + b] - most);
        if (x > importance[b]) importance[b] = x;
      }
    }
  }

  // level [blocks]: 1, 2, 4 or 8 keys a row, 0 where a block is skipped.
  void AssignLevels(const Plan& plan, const RouterState& state, int64_t head, int64_t blocks,
                    WorkerScratch scratch) const {
    const float* importance = scratch[plan.importance];
    uint32_t* order = scratch[plan.order];
    uint8_t* level = scratch[plan.level];
    OrderByScore(importance, blocks, order);
    double total = 0;
    int64_t ranked = 0;  // blocks with a score stand first
    for (; ranked < blocks && importance[order[ranked]] >= 0; ++ranked)
      total += importance[order[ranked]];

    const double ends[kLevels] = {config_.to1, config_.to2, config_.to4, config_.to8};
    int64_t least = 0;
    if (config_.min_exact > 0)
      least = 1 + static_cast<int64_t>(config_.min_exact * static_cast<double>(blocks));
    std::fill(level, level + blocks, uint8_t{0});
    int64_t from = 0;
    for (int64_t l = 0; l < kLevels; ++l) {
      int64_t to = config_.assign == Assign::kRank
                       ? static_cast<int64_t>(std::ceil(ends[l] * static_cast<double>(blocks)))
                       : WithinMass(importance, order, ranked, ends[l] * total, total);
      if (l == 0) to = std::max(to, least);
      to = std::min(to, ranked);
      for (; from < to; ++from) level[order[from]] = static_cast<uint8_t>(1 << l);
    }

    const int64_t kv = head / GroupSize(plan.shape);
    const uint8_t* cap = RouterPlan::Get(state.layer, plan.cap) + kv * plan.blocks;
    for (int64_t b = 0; b < blocks && config_.similarity_cap; ++b)
      level[b] = std::min(level[b], cap[b]);
    for (int64_t b = 0; b < std::min(config_.sink, blocks); ++b) level[b] = 1;
  }

  // How many of the first blocks hold no more than `mass`, and the one that crosses it.
  static int64_t WithinMass(const float* importance, const uint32_t* order, int64_t n, double mass,
                            double total) {
    double held = 0;
    int64_t count = 0;
    for (; count < n; ++count) {
      held += importance[order[count]];
      if (held > mass + 1e-6 * total) return count + 1;
    }
    return count;
  }

  // The coarsest level that the likeness of each complete block's keys allows.
  void CapLevels(const Plan& plan, const AttentionInputs& in, const RouterState& state,
                 const RunContext& ctx) const {
    const int64_t first = std::min(state.keys, in.kv_len()) / config_.block;
    const int64_t todo = in.kv_len() / config_.block - first;
    uint8_t* cap = RouterPlan::Get(state.layer, plan.cap);
    const double least[kLevels] = {-1, config_.similar2, config_.similar4, config_.similar8};
    ctx.executor->ParallelFor(
        plan.shape.kv_heads * todo, 4, [&](int64_t begin, int64_t end, int w) {
          float* pair = plan.Worker(ctx, w)[plan.sampled];
          for (int64_t i = begin; i < end; ++i) {
            const int64_t kv = i / todo;
            const int64_t block = first + i % todo;
            uint8_t allowed = 1;
            for (int64_t l = 1; l < kLevels; ++l) {
              if (Likeness(in.k, kv, block, int64_t{1} << l, pair) >= least[l])
                allowed = static_cast<uint8_t>(1 << l);
            }
            cap[kv * plan.blocks + block] = allowed;
          }
        });
  }
  // Mean cosine of the first and the last key of each group of a block.
  double Likeness(const KvView& k, int64_t kv, int64_t block, int64_t group, float* pair) const {
    const int64_t d = k.dim;
    const int64_t groups = config_.block / group;
    double sum = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t start = block * config_.block + g * group;
      KeysAsFloat(k, kv, start, 1, pair);
      KeysAsFloat(k, kv, start + group - 1, 1, pair + d);
      const double norms = std::sqrt(static_cast<double>(kernels::Dot(pair, pair, DType::kF32, d)) *
                                     kernels::Dot(pair + d, pair + d, DType::kF32, d));
      if (norms > 0) sum += kernels::Dot(pair, pair + d, DType::kF32, d) / norms;
    }
    return sum / static_cast<double>(groups);
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_PSA_PSA_H_
