#ifndef SLUICE_ROUTERS_ATTENTION_DHSA_DHSA_H_
#define SLUICE_ROUTERS_ATTENTION_DHSA_DHSA_H_
// DHSA, dynamic hierarchical sparse attention: keys are cut into chunks where the text turns, and a
// block of queries takes the tokens of the chunks that it scores best. For prefill.
//
//   SUM     boundaries between keys; of each chunk the sum of its keys / sqrt(length)
//   SCORE   mean query of a block of queries times the chunks
//   SELECT  the first and the last keys, then whole chunks by falling score until the budget of
//           tokens is full, of the last chunk its first tokens; a list that all heads share
//   ATTEND  the selected tokens, causal
//
// The paper learns its boundaries. Here they are given; or every `chunk` keys; or training-free, to
// be named as such wherever it is measured: a gap between keys is a boundary where the means of the
// `window` keys on both sides have a cosine of at most 1 - novelty, and none within `radius` has a
// lower one. The paper's suppression, which goes by rank over the whole prompt, may keep more; a
// gap's place here depends on keys near it alone, so that chunks of a prompt give the boundaries of
// one call. No chunk is longer than `longest` (ours). What a block of queries cannot yet tell from
// the keys up to its last query is one chunk.
//
// Keys and queries are means over all heads; share=kv (ours) gives each KV head a list of its own,
// by its own keys and its queries; boundaries are of all heads together either way. The first and
// the last keys count in the budget, and are kept where it is smaller. The last keys are those
// before the end of the block of queries, its own keys at least. Blocks of queries with few
// queries, decode above all, are dense (inferred), as are those with one of the prompt's last
// `dense_tail`. Chunks scored NaN are never selected, a gap with a NaN is no boundary; ties go to
// the first chunk and the first gap.
//
// Planning costs queries / block * chunks * width a list, whatever the number of heads. State: a
// vector a chunk and list, a float and at most 4 bytes a key.
#include <vector>

#include "sluice/api/config.h"
#include "sluice/routers/attention/common/perm.h"
#include "sluice/routers/attention/common/runs.h"
#include "sluice/routers/attention/common/score.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class Dhsa {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "dhsa",
      .title =
          "Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs",
      .arxiv = "2510.24606",
      .chunk_invariant = false,  // a block of queries, usually of 128, shares a list
      .full_budget = "budget=2147483648",
      .small_budget = "budget=48,block=16,global=8,local=16,dense_tail=0"};

  enum class Boundaries : uint8_t { kCosine, kFixed, kGiven };
  enum class Share : uint8_t { kAll, kKv };
  struct Config {
    Boundaries boundaries = Boundaries::kCosine;
    std::vector<double> at;
    int64_t chunk = 32;
    int64_t window = 4;
    int64_t radius = 8;
    double novelty = 0;
    int64_t longest = 64;
    int64_t budget = 2048;
    int64_t block = 128;
    int64_t global = 128;
    int64_t local = 128;
    int64_t dense_tail = 64;
    int64_t least_queries = 16;
    Share share = Share::kAll;
    template <class V>
    void VisitFields(V&& v) {
      v("boundaries", boundaries, Choices{"cosine", "fixed", "given"}, "where chunks begin");
      v("at", at, Range<double>{1, kEverything},
        "boundaries=given: where chunks after the first begin, rising");
      v("chunk", chunk, Range<int64_t>{1, 4096},
        "keys per chunk of boundaries=fixed, and after the last given one");
      v("window", window, Range<int64_t>{1, 64}, "boundaries=cosine: keys on each side of a gap");
      v("radius", radius, Range<int64_t>{0, 1024},
        "boundaries=cosine: gaps on each side that a boundary must surpass");
      v("novelty", novelty, Range<double>{0, 2},
        "boundaries=cosine: 1 - cosine of a boundary, at least");
      v("longest", longest, Range<int64_t>{1, 4096}, "boundaries=cosine: keys of a chunk, at most");
      v("budget", budget, Range<int64_t>{1, kEverything}, "tokens per list");
      v("block", block, Range<int64_t>{16, 1024}, "queries that share a list");
      v("global", global, Range<int64_t>{0, kEverything}, "first keys always kept");
      v("local", local, Range<int64_t>{1, kEverything},
        "last keys always kept, before the end of the block of queries");
      v("dense_tail", dense_tail, Range<int64_t>{0, kEverything},
        "last queries of a prompt whose blocks are dense");
      v("least_queries", least_queries, Range<int64_t>{1, 1024},
        "blocks of fewer queries are dense (inferred), at most block; 1: none");
      v("share", share, Choices{"all", "kv"}, "the heads that share a list");
    }
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t chunks = 0;  // at most
    int64_t lists = 0;
    State<int64_t> settled;  // chunks that later keys cannot change
    State<uint32_t> begin;   // [chunks + 1]
    State<float> novelty;    // [keys]: of the gap before a key
    State<float> vectors;    // [lists, chunks, d]
    Scratch<float> query, tail, part, scores, gemm;
    Scratch<uint32_t> order, taken;
  };

  static absl::StatusOr<Dhsa> Create(const Config& c) {
    const bool given = c.boundaries == Boundaries::kGiven;
    if (given == c.at.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("boundaries=given and a list of at=A/B/.. go together; at has ", c.at.size(),
                       " numbers"));
    }
    for (size_t i = 0; i < c.at.size(); ++i) {
      if (c.at[i] == std::floor(c.at[i]) && (i == 0 || c.at[i] > c.at[i - 1])) continue;
      return absl::InvalidArgumentError(absl::StrCat("at: number ", i + 1, ", ", c.at[i],
                                                     ", is not whole and above the one "
                                                     "before it"));
    }
    if (c.least_queries > c.block) {
      return absl::InvalidArgumentError(absl::StrCat("least_queries=", c.least_queries,
                                                     ", at most block=", c.block, " is allowed"));
    }
    return Dhsa(c);
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    plan.lists = config_.share == Share::kAll ? 1 : s.kv_heads;
    plan.chunks = MostChunks(s.max_kv);
    plan.settled = plan.AddState<int64_t>(1);
    plan.begin = plan.AddState<uint32_t>(plan.chunks + 1);
    plan.novelty = plan.AddState<float>(s.max_kv);
    plan.vectors = plan.AddState<float>(plan.lists * plan.chunks * s.head_dim);
    plan.query = plan.AddScratch<float>(s.head_dim);
    plan.tail = plan.AddScratch<float>(s.head_dim);
    plan.part = plan.AddScratch<float>(2 * s.head_dim);
    plan.scores = plan.AddScratch<float>(plan.chunks + 1);
    plan.order = plan.AddScratch<uint32_t>(plan.chunks + 1);
    plan.taken = plan.AddScratch<uint32_t>(plan.chunks + 1);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.layout.max_tile = config_.block;
    plan.layout.AddBranch({.rows = plan.lists * MaxTiles(s, config_.block),
                           .entry_slots = std::min(RunSlots(s), plan.chunks + 3)});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    Append(plan, in, state, ctx);

    const ListScope scope =
        config_.share == Share::kAll ? ListScope::kAllHeads : ListScope::kKvHead;
    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch,
                            out.AddBranch({.scope = scope, .tile = config_.block}));
    ForEachRow(branch, plan, ctx, [&](int64_t list, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      const int64_t row = branch.row_of(list, tile);
      if (IsDense(in, q)) {
        const Guards all = {.sink = 0, .local = kEverything};
        branch.set_count(row, RunWriter(all, q, branch.entries(row)).Finish());
        return;
      }
      const int64_t chunks = Score(plan, in, state, list, RowsOf(branch, tile), q, scratch);
      branch.set_count(row, Select(plan, state, chunks, q, scratch, branch.entries(row)));
    });
    return absl::OkStatus();
  }

 private:
  explicit Dhsa(const Config& c) : config_(c) {}

  // Keys after a boundary that may still move it.
  int64_t Lag() const {
    return config_.boundaries == Boundaries::kCosine ? config_.radius + config_.window : 0;
  }
  int64_t MostChunks(int64_t keys) const {
    if (config_.boundaries == Boundaries::kCosine)
      return keys / (config_.radius + 1) + keys / config_.longest + 2;
    return keys / config_.chunk + std::ssize(config_.at) + 2;
  }
  // Queries near the prompt's end, where the host says where that is.
  bool IsDense(const AttentionInputs& in, const TileQueries& q) const {
    const int64_t end = std::max(in.prompt_end, in.kv_len());
    return q.count() < config_.least_queries || q.last >= end - config_.dense_tail;
  }
  bool OfAllHeads() const { return config_.share == Share::kAll; }

  // Where the chunk that begins at `from` ends, as far as the first n keys settle it: else beyond
  // n - Lag().
  int64_t EndOfChunk(const Plan& plan, const RouterState& state, int64_t from, int64_t n) const {
    if (config_.boundaries == Boundaries::kCosine) {
      const float* novelty = RouterPlan::Get(state.layer, plan.novelty);
      int64_t end = from + 1;
      while (end < from + config_.longest && end + Lag() <= n && !IsBoundary(novelty, end)) ++end;
      return end;
    }
    for (double at : config_.at) {
      if (at > static_cast<double>(from)) return static_cast<int64_t>(at);
    }
    return from + config_.chunk;
  }
  // The gap before a key is novel enough, and the first of the most novel ones around it.
  bool IsBoundary(const float* novelty, int64_t gap) const {
    if (!(gap >= config_.window && novelty[gap] >= config_.novelty)) return false;
    for (int64_t s = std::max(config_.window, gap - config_.radius); s < gap; ++s) {
      if (novelty[s] >= novelty[gap]) return false;
    }
    for (int64_t s = gap + 1; s <= gap + config_.radius; ++s) {
      if (novelty[s] > novelty[gap]) return false;
    }
    return true;
  }

  // Brings chunks up to the keys: those that end by now and no later key can change.
  void Append(const Plan& plan, const AttentionInputs& in, RouterState& state,
              const RunContext& ctx) const {
    const int64_t n = in.kv_len();
    const int64_t known = std::min(state.keys, n);
    int64_t& settled = *RouterPlan::Get(state.layer, plan.settled);
    uint32_t* begin = RouterPlan::Get(state.layer, plan.begin);
    while (settled > 0 && begin[settled] + Lag() > known) --settled;
    if (config_.boundaries == Boundaries::kCosine) AppendNovelty(plan, in, known, state, ctx);

    const int64_t first = settled;
    for (;;) {
      const int64_t end = EndOfChunk(plan, state, begin[settled], n);
      if (end + Lag() > n) break;
      begin[++settled] = static_cast<uint32_t>(end);
    }
    const int64_t todo = settled - first;
    ctx.executor->ParallelFor(plan.lists * todo, 8, [&](int64_t from, int64_t to, int w) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t c = first + i % todo;
        SumKeys(plan, in.k, i / todo, begin[c], begin[c + 1], plan.Worker(ctx, w),
                Vector(plan, state, i / todo, c));
      }
    });
  }
  static float* Vector(const Plan& plan, const RouterState& state, int64_t list, int64_t chunk) {
    const int64_t d = plan.shape.head_dim;
    return RouterPlan::Get(state.layer, plan.vectors) + (list * plan.chunks + chunk) * d;
  }

  // out [d] = mean over a list's heads of keys [begin, end), times the root of how many they are.
  void SumKeys(const Plan& plan, const KvView& k, int64_t list, int64_t begin, int64_t end,
               WorkerScratch scratch, float* out) const {
    const float root = std::sqrt(static_cast<float>(end - begin));
    if (!OfAllHeads()) {
      MeanKey(k, list, begin, end, out);
    } else {
      MeanKeyOfHeads(k, begin, end, scratch[plan.part], out);
    }
    for (int64_t x = 0; x < k.dim; ++x) out[x] *= root;
  }
  static void MeanKey(const KvView& k, int64_t kv, int64_t begin, int64_t end, float* out) {
    kernels::Pool(kernels::PoolKind::kMean, k.at(begin, kv), k.dtype, k.row_stride, end - begin,
                  k.dim, out);
  }
  static void MeanKeyOfHeads(const KvView& k, int64_t begin, int64_t end, float* part, float* out) {
    std::fill(out, out + k.dim, 0.0f);
    for (int64_t kv = 0; kv < k.heads; ++kv) {
      MeanKey(k, kv, begin, end, part);
      for (int64_t x = 0; x < k.dim; ++x) out[x] += part[x] / static_cast<float>(k.heads);
    }
  }

  // 1 - cosine of the means on both sides of each gap that has `window` keys on both.
  void AppendNovelty(const Plan& plan, const AttentionInputs& in, int64_t known,
                     const RouterState& state, const RunContext& ctx) const {
    const int64_t w = config_.window;
    const int64_t d = in.k.dim;
    float* novelty = RouterPlan::Get(state.layer, plan.novelty);
    const int64_t first = std::max(w, known - w + 1);
    const int64_t todo = std::max<int64_t>(0, in.kv_len() - w + 1 - first);
    ctx.executor->ParallelFor(todo, 64, [&](int64_t from, int64_t to, int worker) {
      const WorkerScratch scratch = plan.Worker(ctx, worker);
      float* left = scratch[plan.query];
      float* right = scratch[plan.tail];
      for (int64_t gap = first + from; gap < first + to; ++gap) {
        MeanKeyOfHeads(in.k, gap - w, gap, scratch[plan.part], left);
        MeanKeyOfHeads(in.k, gap, gap + w, scratch[plan.part], right);
        const float both = kernels::Dot(left, right, DType::kF32, d);
        const float lengths =
            kernels::Dot(left, left, DType::kF32, d) * kernels::Dot(right, right, DType::kF32, d);
        novelty[gap] = lengths == 0 ? 0 : 1 - both / std::sqrt(lengths);
      }
    });
  }

  // plan.scores = what the tile thinks of its chunks, the last of them what is not settled for its
  // last query. Returns how many.
  int64_t Score(const Plan& plan, const AttentionInputs& in, const RouterState& state, int64_t list,
                TileRows rows, const TileQueries& q, WorkerScratch scratch) const {
    const int64_t d = in.q.dim;
    const int64_t n = q.last + 1;
    const int64_t heads = OfAllHeads() ? in.q.heads : GroupSize(plan.shape);
    float* query = scratch[plan.query];
    float* part = scratch[plan.part];
    std::fill(query, query + d, 0.0f);
    for (int64_t head = list * heads; head < (list + 1) * heads; ++head) {
      MeanQuery(in.q, rows, head, in.scale / static_cast<float>(heads), part);
      for (int64_t x = 0; x < d; ++x) query[x] += part[x];
    }

    const int64_t settled = SettledBy(plan, state, n);
    const int64_t begin = RouterPlan::Get(state.layer, plan.begin)[settled];
    float* scores = scratch[plan.scores];
    ScoreDot(query, 1, Vector(plan, state, list, 0), settled, d, scores, scratch[plan.gemm]);
    if (begin == n) return settled;
    SumKeys(plan, in.k, list, begin, n, scratch, scratch[plan.tail]);
    ScoreDot(query, 1, scratch[plan.tail], 1, d, scores + settled, scratch[plan.gemm]);
    return settled + 1;
  }
  // Chunks that the first n keys settle.
  int64_t SettledBy(const Plan& plan, const RouterState& state, int64_t n) const {
    const uint32_t* begin = RouterPlan::Get(state.layer, plan.begin);
    const uint32_t* end = begin + *RouterPlan::Get(state.layer, plan.settled) + 1;
    return std::upper_bound(begin + 1, end, n - Lag()) - (begin + 1);
  }

  // Writes the tile's row; returns how many entries.
  int64_t Select(const Plan& plan, const RouterState& state, int64_t chunks, const TileQueries& q,
                 WorkerScratch scratch, PlanEntry* out) const {
    const int64_t n = q.last + 1;
    const int64_t local = std::min(q.first, n - std::min(n, config_.local));
    const int64_t global = std::min(config_.global, local);
    const uint32_t* begin = RouterPlan::Get(state.layer, plan.begin);
    const int64_t settled = SettledBy(plan, state, n);
    // What of a chunk is neither first nor last keys.
    const auto first_of = [&](int64_t c) { return std::max<int64_t>(global, begin[c]); };
    const auto size_of = [&](int64_t c) {
      const int64_t end = c < settled ? int64_t{begin[c + 1]} : n;
      return std::max<int64_t>(0, std::min(local, end) - first_of(c));
    };

    const float* scores = scratch[plan.scores];
    uint32_t* order = scratch[plan.order];
    uint32_t* taken = scratch[plan.taken];
    OrderByScore(scores, chunks, order);
    std::fill(taken, taken + chunks, 0u);
    int64_t room = config_.budget - global - (n - local);
    for (int64_t i = 0; i < chunks && room > 0 && !std::isnan(scores[order[i]]); ++i) {
      const int64_t some = std::min(room, size_of(order[i]));
      taken[order[i]] = static_cast<uint32_t>(some);
      room -= some;
    }

    RunWriter runs({.sink = global, .local = q.first + 1 - local}, q, out);
    for (int64_t c = 0; c < chunks; ++c) runs.Add(first_of(c), first_of(c) + taken[c]);
    return runs.Finish();
  }

  Config config_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_DHSA_DHSA_H_
