#ifndef SLUICE_ROUTERS_ATTENTION_INFINITE_HIP_INFINITE_HIP_H_
#define SLUICE_ROUTERS_ATTENTION_INFINITE_HIP_INFINITE_HIP_H_
// InfiniteHiP: chunks of the history are pruned in stages, each over smaller chunks of what the one
// before it kept, and a decode step reuses what earlier steps kept. Training-free.
//
//   REFINE  stage by stage: the history between sink and window, then what was kept, is cut into
//           chunks of so many keys
//   SUM     a chunk's own representative for every head: its centre key is met, then the centres of
//           its halves, and the better half is gone on with until it is one key; queries are means
//           of `stride` neighbours
//   SCORE   the highest product met with any of the block's queries, of any of the heads that share
//           a list
//   SELECT  the best chunks of the stage's budget
//   REUSE   a decode step takes a stage's chunks from the step that planned it last, up to the
//           stage's `refresh`; later stages are planned anew whenever an earlier one is
//   ATTEND  sink, chunks and window, causal
//
// Inferred: that the centre of a whole chunk is looked at too, and that keys which leave the window
// while a first stage is reused stay attended until it is planned anew. Positions are not rewritten
// and nothing is offloaded. The source keeps some layers and short prompts dense, which policies
// say (`per_layer(3*dense | ...)`, `cascade(dense<=8192 | ...)`).
//
// Ties go to the left half and to the first chunk; products of NaN are passed over, and a chunk
// without a product is not kept. A stage costs 2 log2(chunk) / stride products a query block, chunk
// and head. State: the chunks that the stages of the last steps kept.
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "sluice/routers/attention/common/prep.h"
#include "sluice/routers/attention/common/runs.h"
#include "sluice/routers/attention/common/score.h"
#include "sluice/runtime/kernels/top_k/top_k.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
class InfiniteHip {
 public:
  static constexpr AttentionTraits kTraits = {
      .name = "infinite_hip",
      .title =
          "InfiniteHiP: Extending Language Model Context Up to 3 Million Tokens on a Single "
          "GPU",
      .arxiv = "2502.08910",
      .chunk_invariant = false,  // a step's list depends on when its stages were planned last
      .full_budget = "stages=256/2147483648/4/32;32/2147483648/4/16;8/2147483648/1/8",
      .small_budget = "stages=16/64/2/4;4/32/1/2,block_q=16,sink=4,window=16"};

  enum class Share : uint8_t { kAll, kGroup, kHead };
  struct Config {
    std::string stages = "256/32768/4/32;32/8192/4/16;8/2048/1/8";
    int64_t block_q = 64;
    int64_t sink = 256;
    int64_t window = 1024;
    Share share = Share::kAll;
    template <class V>
    void VisitFields(V&& v) {
      v("stages", stages, Text{4096},
        "chunk/keep/stride/refresh of each stage, semicolons between: keys of a chunk, keys kept, "
        "queries whose mean scores, decode steps after which it is planned anew");
      v("block_q", block_q, Range<int64_t>{1, 64}, "queries that share a list");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first keys always kept");
      v("window", window, Range<int64_t>{1, kEverything},
        "keys before the first query of a block always kept, itself included");
      v("share", share, Choices{"all", "group", "head"}, "which query heads share a list");
    }
  };
  struct Stage {
    int64_t chunk = 0;
    int64_t keep = 0;
    int64_t stride = 0;
    int64_t refresh = 0;
  };
  static constexpr int64_t kMostStages = 8;
  // Of decode steps, in a layer's state.
  struct Memory {
    int64_t keys = 0;               // after the last step; 0: nothing is remembered
    int64_t end = 0;                // of the first stage's history
    int64_t age[kMostStages] = {};  // steps since a stage was planned
  };
  struct Plan : RouterPlan {
    using RouterPlan::RouterPlan;
    int64_t slots = 0;  // chunks that any stage keeps
    State<Memory> memory;
    State<uint32_t> kept;        // [stages, lists, slots]: first keys
    State<uint32_t> kept_count;  // [stages, lists]
    Scratch<float> queries, keys, products, best, gemm;
    Scratch<uint32_t> chunks, left, right, picked;
    Scratch<std::byte> top;
  };

  static absl::StatusOr<InfiniteHip> Create(const Config& c) {
    InfiniteHip r(c);
    for (absl::string_view text : absl::StrSplit(c.stages, ';')) {
      SLUICE_ASSIGN_OR_RETURN(const Stage stage, ReadStage(text));
      r.stages_.push_back(stage);
      if (std::ssize(r.stages_) == 1) continue;
      const Stage& before = r.stages_[r.stages_.size() - 2];
      if (before.chunk % stage.chunk != 0 || before.refresh < stage.refresh) {
        return absl::InvalidArgumentError(
            absl::StrCat("stages: '", text, "' must cut chunks of ", before.chunk,
                         " evenly, and be planned anew at least every ", before.refresh, " steps"));
      }
    }
    if (std::ssize(r.stages_) > kMostStages)
      return absl::InvalidArgumentError(
          absl::StrCat(r.stages_.size(), " stages, at most ", kMostStages));
    return r;
  }

  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan plan(s);
    const int64_t lists = NumLists(scope(), s.heads, s.kv_heads);
    const int64_t stages = std::ssize(stages_);
    int64_t chunks = 0;
    int64_t live = s.max_kv;  // keys that a stage begins with
    for (const Stage& stage : stages_) {
      chunks = std::max(chunks, CeilDiv(live, stage.chunk) + 1);
      live = std::min(live, stage.keep);
      plan.slots = std::max(plan.slots, CeilDiv(live, stage.chunk) + 1);
    }
    plan.memory = plan.AddState<Memory>(1);
    plan.kept = plan.AddState<uint32_t>(stages * lists * plan.slots);
    plan.kept_count = plan.AddState<uint32_t>(stages * lists);
    plan.queries = plan.AddScratch<float>(config_.block_q * s.head_dim);
    plan.keys = plan.AddScratch<float>(2 * kBatch * s.head_dim);
    plan.products = plan.AddScratch<float>(config_.block_q * 2 * kBatch);
    plan.best = plan.AddScratch<float>(chunks + kBatch);
    plan.gemm = AddGemmScratch(plan, s.head_dim);
    plan.chunks = plan.AddScratch<uint32_t>(chunks);
    plan.left = plan.AddScratch<uint32_t>(kBatch);
    plan.right = plan.AddScratch<uint32_t>(kBatch);
    plan.picked = plan.AddScratch<uint32_t>(chunks);
    plan.top = plan.AddScratch<std::byte>(kernels::TopKScratchBytes(chunks));
    plan.layout.max_tile = config_.block_q;
    plan.layout.AddBranch({.rows = lists * MaxTiles(s, config_.block_q),
                           .entry_slots = std::min(RunSlots(s), plan.slots + 2)});
    return plan;
  }

  absl::Status Run(const Plan& plan, const AttentionInputs& in, RouterState& state,
                   const RunContext& ctx, PlanBuilder& out) const {
    Memory& memory = *RouterPlan::Get(state.layer, plan.memory);
    const bool step = in.q.rows == 1 && in.q_begin + 1 == in.kv_len();
    // A state that was truncated since speaks of fewer keys than the last step did.
    const bool follows =
        step && memory.keys > 0 && memory.keys == state.keys && in.kv_len() == memory.keys + 1;
    const int64_t first = follows ? FirstStage(memory) : 0;
    if (first == 0) memory.end = History(in, 0);
    for (int64_t i = 0; i < std::ssize(stages_); ++i)
      memory.age[i] = i < first ? memory.age[i] + 1 : 1;
    memory.keys = step ? in.kv_len() : 0;

    Begin(plan.shape, in, out);
    SLUICE_ASSIGN_OR_RETURN(BranchWriter branch,
                            out.AddBranch({.scope = scope(), .tile = config_.block_q}));
    ForEachRow(branch, plan, ctx, [&](int64_t list, int64_t tile, WorkerScratch scratch) {
      const TileQueries q = branch.Queries(tile);
      const TileRows rows = RowsOf(branch, tile);
      const int64_t end = step ? memory.end : History(in, rows.begin);
      const Call call = {plan, in, rows, list, end, scratch};
      int64_t n = first > 0 ? Recall(call, state, first - 1) : 0;
      for (int64_t i = first; i < std::ssize(stages_); ++i) {
        n = Prune(call, i, n);
        if (step) Remember(call, state, i, n);
      }

      const int64_t row = branch.row_of(list, tile);
      RunWriter runs({.sink = config_.sink, .local = q.first + 1 - end}, q, branch.entries(row));
      const uint32_t* chunks = scratch[plan.chunks];
      for (int64_t i = 0; i < n; ++i)
        runs.Add(chunks[i], std::min<int64_t>(end, chunks[i] + stages_.back().chunk));
      branch.set_count(row, runs.Finish());
    });
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kBatch = 64;  // chunks that are halved together
  struct Call {
    const Plan& plan;
    const AttentionInputs& in;
    TileRows rows;
    int64_t list;
    int64_t end;  // of the history
    WorkerScratch scratch;
  };
  explicit InfiniteHip(const Config& c) : config_(c) {}

  static absl::StatusOr<Stage> ReadStage(absl::string_view text) {
    constexpr int64_t kMostSteps = 1 << 20;
    const std::vector<absl::string_view> parts = absl::StrSplit(text, '/');
    Stage s;
    const bool read = parts.size() == 4 && absl::SimpleAtoi(parts[0], &s.chunk) &&
                      absl::SimpleAtoi(parts[1], &s.keep) &&
                      absl::SimpleAtoi(parts[2], &s.stride) &&
                      absl::SimpleAtoi(parts[3], &s.refresh);
    if (read && s.chunk >= 1 && s.chunk <= 65536 && s.keep >= s.chunk && s.keep <= kEverything &&
        s.keep % s.chunk == 0 && s.stride >= 1 && s.stride <= 64 && s.refresh >= 1 &&
        s.refresh <= kMostSteps)
      return s;
    return absl::InvalidArgumentError(
        absl::StrCat("stages: '", text,
                     "' is not chunk/keep/stride/refresh with a chunk of 1 to 65536 keys, "
                     "keep a multiple of it up to ",
                     kEverything, ", a stride of 1 to 64 and a refresh of 1 to ", kMostSteps));
  }
  ListScope scope() const {
    return config_.share == Share::kAll     ? ListScope::kAllHeads
           : config_.share == Share::kGroup ? ListScope::kKvHead
                                            : ListScope::kQueryHead;
  }
  // One past the last key before the window of row i.
  int64_t History(const AttentionInputs& in, int64_t i) const {
    const int64_t position = in.q_begin + i;
    return std::min(position + 1, std::max(config_.sink, position - config_.window + 1));
  }
  // The first stage that a step plans anew; what comes after it is, too.
  int64_t FirstStage(const Memory& memory) const {
    int64_t i = 0;
    while (i < std::ssize(stages_) && memory.age[i] < stages_[i].refresh) ++i;
    return i;
  }

  // What a stage kept: into the scratch, and back.
  uint32_t* Kept(const Call& c, const RouterState& state, int64_t stage) const {
    const int64_t lists = NumLists(scope(), c.plan.shape.heads, c.plan.shape.kv_heads);
    return RouterPlan::Get(state.layer, c.plan.kept) + (stage * lists + c.list) * c.plan.slots;
  }
  uint32_t& KeptCount(const Call& c, const RouterState& state, int64_t stage) const {
    const int64_t lists = NumLists(scope(), c.plan.shape.heads, c.plan.shape.kv_heads);
    return RouterPlan::Get(state.layer, c.plan.kept_count)[stage * lists + c.list];
  }
  void Remember(const Call& c, const RouterState& state, int64_t stage, int64_t n) const {
    std::copy_n(c.scratch[c.plan.chunks], n, Kept(c, state, stage));
    KeptCount(c, state, stage) = static_cast<uint32_t>(n);
  }
  int64_t Recall(const Call& c, const RouterState& state, int64_t stage) const {
    const int64_t n = KeptCount(c, state, stage);
    std::copy_n(Kept(c, state, stage), n, c.scratch[c.plan.chunks]);
    return n;
  }

  // One stage over the n chunks that the one before it kept; returns how many it keeps.
  int64_t Prune(const Call& c, int64_t stage, int64_t n) const {
    const Stage& s = stages_[stage];
    n = stage == 0 ? CutHistory(c, s.chunk) : CutChunks(c, stages_[stage - 1].chunk, s.chunk, n);
    if (n == 0) return 0;
    const int64_t heads =
        c.in.q.heads / NumLists(scope(), c.plan.shape.heads, c.plan.shape.kv_heads);
    std::fill_n(c.scratch[c.plan.best], n, -HUGE_VALF);
    for (int64_t head = c.list * heads; head < (c.list + 1) * heads; ++head) {
      const int64_t queries = MeanQueries(c, head, s.stride);
      for (int64_t at = 0; at < n; at += kBatch)
        ScoreChunks(c, head / GroupSize(c.plan.shape), queries, s.chunk, at,
                    std::min(kBatch, n - at));
    }
    uint32_t* chunks = c.scratch[c.plan.chunks];
    uint32_t* picked = c.scratch[c.plan.picked];
    const int64_t kept = kernels::TopK(c.scratch[c.plan.best], n, std::min(n, s.keep / s.chunk),
                                       picked, c.scratch[c.plan.top])
                             .count;
    for (int64_t i = 0; i < kept; ++i) chunks[i] = chunks[picked[i]];
    return kept;
  }
  int64_t CutHistory(const Call& c, int64_t chunk) const {
    int64_t n = 0;
    for (int64_t at = config_.sink; at < c.end; at += chunk)
      c.scratch[c.plan.chunks][n++] = static_cast<uint32_t>(at);
    return n;
  }
  // The last chunk may hold fewer pieces.
  int64_t CutChunks(const Call& c, int64_t from, int64_t to, int64_t n) const {
    uint32_t* chunks = c.scratch[c.plan.chunks];
    const int64_t each = from / to;
    int64_t total = 0;
    for (int64_t i = 0; i < n; ++i) total += Pieces(c, chunks[i], from, to);
    for (int64_t i = n - 1, at = total; i >= 0 && each > 1; --i) {
      const int64_t start = chunks[i];
      for (int64_t piece = Pieces(c, start, from, to) - 1; piece >= 0; --piece)
        chunks[--at] = static_cast<uint32_t>(start + piece * to);
    }
    return total;
  }
  static int64_t Pieces(const Call& c, int64_t start, int64_t from, int64_t to) {
    return CeilDiv(std::min(from, c.end - start), to);
  }

  // plan.queries: means of `stride` neighbouring queries of a head; returns how many.
  static int64_t MeanQueries(const Call& c, int64_t head, int64_t stride) {
    float* out = c.scratch[c.plan.queries];
    const int64_t n = CeilDiv(c.rows.count, stride);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t some = std::min(stride, c.rows.count - i * stride);
      MeanQuery(c.in.q, {c.rows.begin + i * stride, some}, head, 1, out + i * c.in.q.dim);
    }
    return n;
  }

  // best [at, at + n) = the highest product that a KV head's keys are met with on the way down.
  void ScoreChunks(const Call& c, int64_t kv, int64_t queries, int64_t chunk, int64_t at,
                   int64_t n) const {
    float* best = c.scratch[c.plan.best] + at;
    uint32_t* left = c.scratch[c.plan.left];
    uint32_t* right = c.scratch[c.plan.right];
    float products[2 * kBatch];
    int64_t longest = 0;
    for (int64_t i = 0; i < n; ++i) {
      left[i] = c.scratch[c.plan.chunks][at + i];
      right[i] = static_cast<uint32_t>(std::min<int64_t>(c.end, left[i] + chunk));
      longest = std::max<int64_t>(longest, right[i] - left[i]);
      KeysAsFloat(c.in.k, kv, (left[i] + right[i]) / 2, 1, c.scratch[c.plan.keys] + i * c.in.k.dim);
    }
    Highest(c, queries, n, products);
    for (int64_t i = 0; i < n; ++i) best[i] = std::max(best[i], products[i]);

    for (; longest > 1; longest = (longest + 1) / 2) {
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t middle = (left[i] + right[i]) / 2;
        float* keys = c.scratch[c.plan.keys] + 2 * i * c.in.k.dim;
        KeysAsFloat(c.in.k, kv, (left[i] + middle) / 2, 1, keys);
        KeysAsFloat(c.in.k, kv, (middle + right[i]) / 2, 1, keys + c.in.k.dim);
      }
      Highest(c, queries, 2 * n, products);
      for (int64_t i = 0; i < n; ++i) {
        if (right[i] - left[i] <= 1) continue;
        const uint32_t middle = (left[i] + right[i]) / 2;
        const bool goes_left = products[2 * i] >= products[2 * i + 1];
        best[i] = std::max(best[i], products[2 * i + (goes_left ? 0 : 1)]);
        (goes_left ? right : left)[i] = middle;
      }
    }
  }
  // highest [n] of the products of n gathered keys with the queries.
  static void Highest(const Call& c, int64_t queries, int64_t n, float* highest) {
    float* products = c.scratch[c.plan.products];
    ScoreDot(c.scratch[c.plan.queries], queries, c.scratch[c.plan.keys], n, c.in.k.dim, products,
             c.scratch[c.plan.gemm]);
    std::fill_n(highest, n, -HUGE_VALF);
    MaxOverRows(products, queries, n, highest);
  }

  Config config_;
  std::vector<Stage> stages_;
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_INFINITE_HIP_INFINITE_HIP_H_
