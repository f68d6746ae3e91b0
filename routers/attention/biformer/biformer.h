#ifndef SLUICE_ROUTERS_ATTENTION_BIFORMER_BIFORMER_H_
#define SLUICE_ROUTERS_ATTENTION_BIFORMER_BIFORMER_H_
// BiFormer: bi-level routing attention over the tokens of an image, row by row of a grid. For
// encoders: no causal mask. No weights: they are the model's own.
//
//   PERM    tokens region by region: the grid is cut into regions x regions of them
//   SUM     mean query and mean key of each region, all heads together
//   SCORE   their products: which region is how near to which
//   SELECT  the k nearest regions of each region, one choice for all heads
//   ATTEND  every token of a region over all tokens of the chosen ones
//
// What the published block adds to the output, a depth-wise convolution of the values over the
// grid, is the caller's, as the projections are.
//
// The published attention divides logits by the square root of the full width, heads * head_dim,
// not of the head's: checkpoints depend on it. The scale is the host's
// (AttentionInputs::scale); `scale` says which one a policy's model was trained with, and refuses
// the other.
//
// Inferred, each a switch: where regions do not divide the grid they are as large as if it were
// filled up to the next multiple. What fills it up is never attended and chosen by no one; means
// are over the tokens that are there (mean=cells: as if the others were zeros). The public code
// has two rules that disagree. A grid whose last row is incomplete is refused without `ragged`.
//
// A NaN score is never selected; a region that likes none, its mean being NaN, sees itself, so
// that a NaN among its queries comes out as NaN. Ties go to the first region. With R regions,
// planning costs 2 tokens * width + R^2 * width, width being that of all KV heads, and attention
// k / R of all pairs; R near tokens^(2/3) makes both least. No state.
#include <algorithm>
#include <cmath>

#include "sluice/api/config.h"
#include "sluice/routers/attention/common/plan.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/pool/pool.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
// A grid of tokens cut into side x side regions, numbered row by row.
struct RegionGrid {
  int64_t tokens = 0;
  int64_t height = 0;
  int64_t width = 0;  // the last row may lack tokens
  int64_t side = 1;

  int64_t regions() const { return side * side; }
  // Cells of a region, with those that the grid lacks.
  int64_t tall() const { return CeilDiv(height, side); }
  int64_t wide() const { return CeilDiv(width, side); }

  // Calls body(first, n) for the tokens of a region, row by row.
  template <class Body>
  void ForEachRun(int64_t region, Body&& body) const {
    const int64_t top = region / side * tall();
    const int64_t left = region % side * wide();
    const int64_t right = std::min(width, left + wide());
    for (int64_t row = top; row < std::min(height, top + tall()); ++row) {
      const int64_t first = row * width + left;
      const int64_t end = std::min(tokens, row * width + right);
      if (first < end) body(first, end - first);
    }
  }
  int64_t Tokens(int64_t region) const {
    int64_t sum = 0;
    ForEachRun(region, [&](int64_t, int64_t n) { sum += n; });
    return sum;
  }
};

class BiFormer {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "biformer",
      .title = "BiFormer: Vision Transformer with Bi-Level Routing Attention",
      .arxiv = "2303.08810",
      .chunk_invariant = false,
      .bidirectional = true,
      .full_budget = "ragged=true,regions=4,k=16",
      .small_budget = "ragged=true,regions=4,k=4"};

  enum class Mean : uint8_t { kTokens, kCells };
  enum class Scale : uint8_t { kAny, kWidth, kHead };
  static constexpr int64_t kPlain = -2;
  struct Config {
    int64_t height = 0;
    int64_t width = 0;
    bool ragged = false;
    int64_t regions = 7;
    int64_t k = 4;
    Mean mean = Mean::kTokens;
    Scale scale = Scale::kAny;
    template <class V>
    void VisitFields(V&& v) {
      v("height", height, Range<int64_t>{0, 1 << 20},
        "rows of the grid of tokens; 0: as many as there are, a square where width is 0 too");
      v("width", width, Range<int64_t>{0, 1 << 20}, "tokens of a row; 0: as height");
      v("ragged", ragged, Range<bool>{false, true},
        "take a grid whose last row is incomplete; height stays 0 then");
      v("regions", regions, Range<int64_t>{1, 256}, "regions a side");
      v("k", k, Range<int64_t>{kPlain, 1 << 16},
        "regions that a region's queries see, 1 to regions^2 (published: 1, 4, 16 by stage); -2: "
        "plain attention");
      v("mean", mean, Choices{"tokens", "cells"},
        "of a region that the grid does not fill: over the tokens that it has, or over its cells, "
        "empty ones being zeros");
      v("scale", scale, Choices{"any", "width", "head"},
        "what the host's logit scale must be: anything, 1 / sqrt(heads * head_dim) as published, "
        "or 1 / sqrt(head_dim)");
    }
    int64_t Side() const { return k == kPlain ? 1 : regions; }
    int64_t Chosen() const { return k == kPlain ? 1 : k; }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    Shared<int64_t> begin;        // [regions + 1]: where a region's tokens stand, region by region
    Shared<int64_t> chosen;       // [regions]: how many regions each one sees
    Shared<float> queries, keys;  // [regions, kv_heads * head_dim]: means
    Scratch<float> run, scores, gemm;
    Scratch<uint32_t> ids;
    Scratch<std::byte> top;
  };

  static absl::StatusOr<BiFormer> Create(const Config& c) {
    if (c.ragged && c.height > 0)
      return absl::InvalidArgumentError(absl::StrCat(
          "height=", c.height, " with ragged=true, which leaves the number of rows open"));
    if (c.k == kPlain) {
      const Config standard;
      if (c.regions == standard.regions && c.mean == standard.mean) return BiFormer(c);
      return absl::InvalidArgumentError("regions and mean are of no use with k=-2");
    }
    if (c.k < 1 || c.k > c.regions * c.regions)
      return absl::InvalidArgumentError(absl::StrCat("k=", c.k, " of the ", c.regions * c.regions,
                                                     " regions of regions=", c.regions,
                                                     "; allowed 1 to all of them, or -2"));
    return BiFormer(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    const int64_t regions = config_.Side() * config_.Side();
    const int64_t width = s.kv_heads * s.head_dim;
    plan.begin = plan.AddShared<int64_t>(regions + 1);
    plan.chosen = plan.AddShared<int64_t>(regions);
    plan.queries = plan.AddShared<float>(regions * width);
    plan.keys = plan.AddShared<float>(regions * width);
    plan.run = plan.AddScratch<float>(s.head_dim);
    plan.scores = plan.AddScratch<float>(kBatch * regions);
    plan.gemm = AddGemmScratch(plan, width);
    plan.ids = plan.AddScratch<uint32_t>(regions);
    plan.top = plan.AddScratch<std::byte>(kernels::TopKScratchBytes(regions));

    // A region's tiles share its list.
    plan.layout.max_tile = kTile;
    plan.layout.perm_slots = s.max_kv;
    plan.layout.AddBranch({.rows = regions + MaxTiles(s, kTile),
                           .entry_slots = config_.Chosen(),
                           .order_slots = s.max_queries});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState&, const RunContext& ctx,
                   PlanBuilder& out) const {
    SLUICE_RETURN_IF_ERROR(CheckScale(plan.shape, in.scale));
    SLUICE_ASSIGN_OR_RETURN(const RegionGrid grid, GridOf(in.kv_len()));
    Begin(plan.shape, in, out);

    int64_t* begin = plan.Get(ctx, plan.begin);
    int64_t tiles = 0;
    begin[0] = 0;
    for (int64_t r = 0; r < grid.regions(); ++r) {
      const int64_t n = grid.Tokens(r);
      begin[r + 1] = begin[r] + n;
      tiles += CeilDiv(n, kTile);
    }
    SLUICE_ASSIGN_OR_RETURN(
        BranchWriter branch,
        out.AddBranch({.scope = ListScope::kAllHeads, .tile = kTile, .num_tiles = tiles}));
    OrderByRegion(grid, branch, out.UsePermutation(ListScope::kAllHeads));

    ctx.executor->ParallelFor(grid.regions(), 1, [&](int64_t from, int64_t to, int w) {
      for (int64_t r = from; r < to; ++r) SumRegion(plan, in, grid, r, ctx, w);
    });
    ctx.executor->ParallelFor(CeilDiv(grid.regions(), kBatch), 1,
                              [&](int64_t from, int64_t to, int w) {
                                for (int64_t batch = from; batch < to; ++batch)
                                  SelectRegions(plan, grid, batch * kBatch, ctx, w, branch);
                              });
    GiveRows(plan, grid, ctx, branch);
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kBatch = 64;  // regions that are scored together

  explicit BiFormer(const Config& c) : config_(c) {}

  absl::Status CheckScale(const AttentionShape& s, float scale) const {
    if (config_.scale == Scale::kAny) return absl::OkStatus();
    const int64_t width =
        config_.scale == Scale::kWidth ? int64_t{s.heads} * s.head_dim : s.head_dim;
    const double want = 1 / std::sqrt(static_cast<double>(width));
    if (std::abs(scale - want) <= 1e-4 * want) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("the host's logit scale is ", scale,
                     ", and scale=", config_.scale == Scale::kWidth ? "width" : "head", " wants ",
                     want, ", 1 / sqrt(", width, ")"));
  }

  absl::StatusOr<RegionGrid> GridOf(int64_t tokens) const {
    RegionGrid grid = {
        .tokens = tokens, .height = config_.height, .width = config_.width, .side = config_.Side()};
    if (grid.height == 0 && grid.width == 0) {
      grid.width = static_cast<int64_t>(std::sqrt(static_cast<double>(tokens)));
      if (config_.ragged && grid.width * grid.width < tokens) ++grid.width;
      grid.height = grid.width;
    }
    if (config_.ragged) {
      grid.height = CeilDiv(tokens, std::max<int64_t>(1, grid.width));
      return grid;
    }
    if (grid.height == 0) grid.height = tokens / grid.width;
    if (grid.width == 0) grid.width = tokens / grid.height;
    if (grid.height * grid.width == tokens) return grid;
    return absl::InvalidArgumentError(absl::StrCat(
        tokens, " tokens are no grid of height=", config_.height, ", width=", config_.width,
        " (0, 0: a square); give what height * width of the model are, or ragged=true where the "
        "last row may be incomplete"));
  }

  // Keys and queries region by region.
  static void OrderByRegion(const RegionGrid& grid, BranchWriter branch, uint32_t* keys) {
    int32_t* queries = branch.q_order(0);
    for (int64_t r = 0; r < grid.regions(); ++r) {
      grid.ForEachRun(r, [&](int64_t first, int64_t n) {
        for (int64_t i = first; i < first + n; ++i) {
          *keys++ = static_cast<uint32_t>(i);
          *queries++ = static_cast<int32_t>(i);
        }
      });
    }
  }

  // The region's mean key of every KV head, and the sum over its query heads of their mean query:
  // products of the two are those of all heads side by side.
  void SumRegion(const Plan& plan, const AttentionInputs& in, const RegionGrid& grid,
                 int64_t region, const RunContext& ctx, int worker) const {
    const int64_t d = plan.shape.head_dim;
    const int64_t width = plan.shape.kv_heads * d;
    const int64_t count =
        config_.mean == Mean::kTokens ? grid.Tokens(region) : grid.tall() * grid.wide();
    float* run = plan.Worker(ctx, worker)[plan.run];
    const auto add = [&](const void* rows, DType type, int64_t stride, int64_t n, float* to) {
      kernels::Pool(kernels::PoolKind::kMean, rows, type, stride, n, d, run);
      const float share = static_cast<float>(n) / static_cast<float>(count);
      for (int64_t x = 0; x < d; ++x) to[x] += share * run[x];
    };

    float* queries = plan.Get(ctx, plan.queries) + region * width;
    float* keys = plan.Get(ctx, plan.keys) + region * width;
    std::fill(queries, queries + width, 0.0f);
    std::fill(keys, keys + width, 0.0f);
    grid.ForEachRun(region, [&](int64_t first, int64_t n) {
      for (int64_t kv = 0; kv < plan.shape.kv_heads; ++kv)
        add(in.k.at(first, kv), in.k.dtype, in.k.row_stride, n, keys + kv * d);
      for (int64_t head = 0; head < plan.shape.heads; ++head)
        add(in.q.at(first, head), DType::kF32, in.q.row_stride, n,
            queries + head / GroupSize(plan.shape) * d);
    });
  }

  // The lists of regions [first, first + kBatch): of each, the k regions of the highest score.
  void SelectRegions(const Plan& plan, const RegionGrid& grid, int64_t first, const RunContext& ctx,
                     int worker, BranchWriter branch) const {
    const int64_t regions = grid.regions();
    const int64_t rows = std::min(kBatch, regions - first);
    const int64_t width = plan.shape.kv_heads * plan.shape.head_dim;
    const int64_t* begin = plan.Get(ctx, plan.begin);
    const WorkerScratch scratch = plan.Worker(ctx, worker);
    float* scores = scratch[plan.scores];
    ScoreDot(plan.Get(ctx, plan.queries) + first * width, rows, plan.Get(ctx, plan.keys), regions,
             width, scores, scratch[plan.gemm]);

    uint32_t* ids = scratch[plan.ids];
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t own = first + i;
      float* score = scores + i * regions;
      for (int64_t r = 0; r < regions; ++r) {
        if (begin[r] == begin[r + 1]) score[r] = -HUGE_VALF;
      }
      int64_t n = kernels::TopK(score, regions, config_.Chosen(), ids, scratch[plan.top]).count;
      if (n == 0) ids[n++] = static_cast<uint32_t>(own);
      plan.Get(ctx, plan.chosen)[own] = n;
      PlanEntry* entries = branch.entries(0) + own * config_.Chosen();
      for (int64_t j = 0; j < n; ++j)
        entries[j] = ExactEntry(begin[ids[j]], begin[ids[j] + 1] - begin[ids[j]], MaskClass::kNone);
    }
  }

  // The tiles of each region, which all read its list.
  void GiveRows(const Plan& plan, const RegionGrid& grid, const RunContext& ctx,
                BranchWriter branch) const {
    const int64_t* begin = plan.Get(ctx, plan.begin);
    int64_t tile = 0;
    branch.tile_begin(0)[0] = 0;
    for (int64_t r = 0; r < grid.regions(); ++r) {
      for (int64_t at = begin[r]; at < begin[r + 1]; at += kTile) {
        branch.set_row(tile, r * config_.Chosen(), plan.Get(ctx, plan.chosen)[r]);
        branch.tile_begin(0)[++tile] = std::min(begin[r + 1], at + kTile);
      }
    }
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_BIFORMER_BIFORMER_H_
