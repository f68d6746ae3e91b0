#include "sluice/runtime/attend/attend.h"

#include "sluice/runtime/attend/attend_run.h"

SLUICE_BEGIN_NAMESPACE
using attend_internal::Bad;
using attend_internal::kAllPanels;
using kernels::kPanelKeys;
namespace {
int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

absl::Status CheckShape(const AttendShape& s, const AttendOptions& o) {
  constexpr int64_t kMostKeys = int64_t{1} << 32;
  constexpr int64_t kMostQueries = int64_t{1} << 31;
  if (s.max_queries <= 0 || s.max_kv <= 0 || s.heads <= 0 || s.kv_heads <= 0 ||
      s.heads % s.kv_heads != 0 || s.head_dim <= 0 || s.value_dim <= 0 || s.max_tile <= 0 ||
      s.workers <= 0 || s.max_branches <= 0 || s.max_slots < 0) {
    return Bad(absl::StrCat("queries ", s.max_queries, ", keys ", s.max_kv, ", heads ", s.heads,
                            "/", s.kv_heads, ", widths ", s.head_dim, "/", s.value_dim, ", tile ",
                            s.max_tile, ", branches ", s.max_branches, ", workers ", s.workers,
                            "; all must be positive and heads a multiple of KV heads"));
  }
  if (s.max_queries > kMostQueries || s.max_kv > kMostKeys || s.max_tile > kMostQueries ||
      s.max_slots > kMostQueries || s.max_branches > PlanLayout::kMaxBranches) {
    return Bad(absl::StrCat("queries ", s.max_queries, ", keys ", s.max_kv, ", tile ", s.max_tile,
                            ", branches ", s.max_branches, "; at most 2^31, 2^32, 2^31 and ",
                            PlanLayout::kMaxBranches));
  }
  if (o.split_keys < 0 || o.split_keys % kPanelKeys != 0)
    return Bad(
        absl::StrCat("split_keys is ", o.split_keys, ", must be a multiple of ", kPanelKeys));
  if (!(o.softcap >= 0) || std::isinf(o.softcap))
    return Bad(absl::StrCat("softcap is ", o.softcap, "; 0 is off, else it must be positive"));
  if ((o.bf16 == kernels::Bf16Unit::kAmx || o.bf16 == kernels::Bf16Unit::kAvx512) &&
      kernels::GetBf16Attention(o.bf16) == nullptr)
    return absl::UnimplementedError(
        absl::StrCat("attend: this CPU or build has no ",
                     o.bf16 == kernels::Bf16Unit::kAmx ? "AMX" : "AVX512-BF16"));
  if (o.token_group < 1) return Bad(absl::StrCat("token_group is ", o.token_group, ", at least 1"));
  return absl::OkStatus();
}

// Sums up a workspace, and notices when it would not fit.
class Sizes {
 public:
  template <class T>
  size_t Add(int64_t a, int64_t b = 1, int64_t c = 1) {
    const auto at = static_cast<size_t>(bytes_);
    int64_t n = 0;
    overflow_ = overflow_ || __builtin_mul_overflow(a, b, &n) || __builtin_mul_overflow(n, c, &n) ||
                __builtin_mul_overflow(n, int64_t{sizeof(T)}, &n) || n > kMost;
    if (!overflow_) bytes_ += RoundUp(n, kWorkspaceAlign);
    overflow_ = overflow_ || bytes_ > kMost;
    return at;
  }
  bool overflow() const { return overflow_; }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kMost = int64_t{1} << 46;
  int64_t bytes_ = 0;
  bool overflow_ = false;
};
// Whether a branch has no causal mask. Its entries are of one mind: one of them tells.
bool ShowsLaterKeys(const AttentionBranch& b) {
  if (b.encoding == Encoding::kPattern) return b.token_mask == MaskClass::kNone;
  if (b.ByToken()) return false;
  const auto row = std::ranges::find_if(b.rows.count, [](uint32_t n) { return n > 0; });
  if (row == b.rows.count.end()) return false;
  const PlanEntry& e = b.entries[b.rows.begin[row - b.rows.count.begin()]];
  return e.state == EntryState::kExact && e.mask == MaskClass::kNone;
}
}  // namespace

absl::StatusOr<Attend> Attend::Create(const AttendShape& s, const AttendOptions& options) {
  SLUICE_RETURN_IF_ERROR(CheckShape(s, options));
  Attend a;
  a.shape_ = s;
  a.options_ = options;
  const int64_t g = s.heads / s.kv_heads;
  int64_t item_queries = std::max(s.max_tile, std::min(options.token_group, s.max_queries));
  if (options.mode == AttendMode::kKvMajor)
    item_queries =
        std::max(item_queries, std::min(s.max_queries, attend_internal::kKvMajorQueries));
  a.rows_ = g * item_queries;
  a.dv_pad_ = RoundUp(s.value_dim, kernels::kValuePad);
  a.words_ = (s.max_kv + 63) / 64;
  a.max_items_ = s.heads * std::max(s.max_queries, s.max_slots);
  a.slots_ =
      s.max_branches > 1 || s.max_slots > 0 ? s.heads * std::max(s.max_queries, s.max_slots) : 0;
  const int64_t cuts =
      options.split_keys > 0 ? (s.max_kv + options.split_keys - 1) / options.split_keys : 1;
  a.max_splits_ = std::clamp<int64_t>(cuts, 1, attend_internal::kMaxSplits);
  const kernels::Bf16Attention* bf16 = kernels::GetBf16Attention(options.bf16);

  Layout& at = a.at_;
  Sizes all;
  at.order = all.Add<uint32_t>(a.max_items_);
  at.cost = all.Add<int64_t>(a.max_items_);
  // One query: every (stream, split) keeps {m, l, o} for its rows.
  at.split = all.Add<float>(s.heads, a.max_splits_, a.dv_pad_ + 2);
  at.state_m = all.Add<float>(a.slots_, s.max_branches);
  at.state_l = all.Add<float>(a.slots_, s.max_branches);
  at.state_o = all.Add<float>(a.slots_, s.max_branches, a.dv_pad_);

  Sizes one;
  // KV-major: copies of the rows that want a panel lie behind all rows.
  const int64_t copies = options.mode == AttendMode::kKvMajor ? 2 : 1;
  at.q = one.Add<float>(a.rows_, s.head_dim, copies);
  at.o = one.Add<float>(a.rows_, a.dv_pad_, std::max<int64_t>(copies, s.max_branches));
  at.m = one.Add<float>(a.rows_, std::max<int64_t>(copies, s.max_branches));
  at.l = one.Add<float>(a.rows_, std::max<int64_t>(copies, s.max_branches));
  at.kt = one.Add<float>(s.head_dim, kPanelKeys);
  at.v = one.Add<float>(a.dv_pad_, kPanelKeys);
  at.mask = one.Add<uint64_t>(a.rows_, copies);
  const int64_t bf16_scratch = bf16 != nullptr ? bf16->scratch_floats(a.rows_, a.dv_pad_) : 0;
  at.scratch = one.Add<float>(std::max(kernels::AttentionScratchFloats(a.rows_), bf16_scratch));
  at.bits = one.Add<uint64_t>(item_queries, a.words_);
  at.row_bias = one.Add<float>(options.logit_mask ? item_queries : 0, kPanelKeys);
  const bool probabilities = options.probabilities || options.feedback;
  at.prob = one.Add<float>(probabilities ? a.rows_ : 0, kPanelKeys);
  at.mass = one.Add<int64_t>(options.feedback ? s.heads : 0, s.max_kv);
  at.norm = one.Add<int64_t>(options.feedback ? s.heads : 0);
  if (bf16 != nullptr) {
    at.aq = one.Add<uint16_t>(bf16->packed_queries(a.rows_, s.head_dim));
    at.ak = one.Add<uint16_t>(bf16->packed_keys(s.head_dim));
    at.av = one.Add<uint16_t>(bf16->packed_values(a.dv_pad_));
  }
  at.counters = one.Add<AttentionCounters>(1);
  at.stride = static_cast<size_t>(one.bytes());
  at.worker = all.Add<std::byte>(one.bytes(), s.workers);
  if (one.overflow() || all.overflow())
    return absl::ResourceExhaustedError(
        "attend: this shape needs more than 2^46 bytes of workspace");
  a.bytes_ = static_cast<size_t>(all.bytes());
  return a;
}

absl::Status Attend::Run(const AttentionPlan& plan, const AttendInputs& in, const RunContext& ctx,
                         const AttendOutputs& out) const {
  if (ctx.executor == nullptr) return Bad("no executor");
  if (plan.q_count == 0) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(CheckPlanBounds(plan));
  AttendRun run(*this, plan, in, ctx, out);
  SLUICE_RETURN_IF_ERROR(run.Check());
  run.Execute();
  return absl::OkStatus();
}

AttendRun::AttendRun(const Attend& a, const AttentionPlan& plan, const AttendInputs& in,
                     const RunContext& ctx, const AttendOutputs& out)
    : a_(a), plan_(plan), in_(in), ws_(ctx.workspace), ex_(*ctx.executor), out_(out) {
  g_ = plan.heads / plan.kv_heads;
  const bool bf16 = in.k.dtype == DType::kBF16 && in.v.dtype == DType::kBF16;
  if (bf16) bf16_ = kernels::GetBf16Attention(a.options_.bf16);
  fused_ = Fused();
  grouped_ = Groupable();
  second_pass_ = !out.probabilities.empty() || out.feedback.key_mass != nullptr;
  bool stops = false;
  for (const AttentionBranch& b : plan.branches) stops = stops || b.stop != StopRule::kNone;
  const bool splittable = fused_ && plan.q_count == 1 && plan.merge == Merge::kLse &&
                          !second_pass_ && out.resume.empty() && !stops;
  if (splittable) splits_ = a.max_splits_;
  // By the call, not by the tile or by what is asked of it: plans of other tiles and scopes, and
  // calls with feedback, give the same bits.
  const bool few = plan.q_count * g_ <= kernels::kFewRows || a.options_.few_rows;
  few_rows_ = few && a.options_.bf16 != kernels::Bf16Unit::kAmx &&
              a.options_.bf16 != kernels::Bf16Unit::kAvx512 && in.k.dim % kernels::kValuePad == 0 &&
              in.v.dim % kernels::kValuePad == 0;
}

absl::Status AttendRun::Check() const {
  const AttendShape& s = a_.shape_;
  const AttentionPlan& p = plan_;
  if (p.heads != s.heads || p.kv_heads != s.kv_heads || p.q_count > s.max_queries ||
      p.kv_len > s.max_kv || std::ssize(p.branches) > s.max_branches) {
    return Bad(absl::StrCat("the plan has ", p.heads, "/", p.kv_heads, " heads, ", p.q_count,
                            " queries, ", p.kv_len, " keys, ", p.branches.size(),
                            " branches; made for ", s.heads, "/", s.kv_heads, ", at most ",
                            s.max_queries, ", ", s.max_kv, ", ", s.max_branches));
  }
  for (const AttentionBranch& b : p.branches) {
    if (b.tile > s.max_tile || b.order_slots * b.num_lists > s.max_slots)
      return Bad(absl::StrCat("a branch has tiles of ", b.tile, " queries and ",
                              b.order_slots * b.num_lists, " slots; made for at most ", s.max_tile,
                              " and ", s.max_slots));
    const Cut cut = CutOf(b);
    if (cut.streams * cut.items_per_stream > a_.max_items_)
      return Bad(absl::StrCat("a branch has ", cut.streams * cut.items_per_stream,
                              " pieces of work; made for at most ", a_.max_items_));
  }
  if (in_.q.rows != p.q_count || in_.q.heads != s.heads || in_.q.dim != s.head_dim) {
    return Bad(absl::StrCat("q is [", in_.q.rows, ", ", in_.q.heads, ", ", in_.q.dim, "], wanted [",
                            p.q_count, ", ", s.heads, ", ", s.head_dim, "]"));
  }
  if (in_.k.rows < p.kv_len || in_.k.heads != s.kv_heads || in_.k.dim != s.head_dim ||
      in_.v.rows < p.kv_len || in_.v.heads != s.kv_heads || in_.v.dim != s.value_dim) {
    return Bad(absl::StrCat("k is [", in_.k.rows, ", ", in_.k.heads, ", ", in_.k.dim, "] and v [",
                            in_.v.rows, ", ", in_.v.heads, ", ", in_.v.dim, "], wanted at least ",
                            p.kv_len, " rows, ", s.kv_heads, " heads, widths ", s.head_dim, " and ",
                            s.value_dim));
  }
  for (const SummaryTable& t : p.tables) {
    if (t.k.dim != s.head_dim || t.v.dim != s.value_dim || t.k.dtype >= DType::kI8 ||
        t.v.dtype >= DType::kI8)
      return Bad(absl::StrCat("a summary table has widths ", t.k.dim, " and ", t.v.dim));
  }
  if (in_.k.dtype == DType::kI8 || in_.v.dtype == DType::kI8)
    return Bad("int8 keys are for selection only; attend needs f32, bf16, f16, q8_0 or q4_0");
  for (const KvView* view : {&in_.k, &in_.v}) {
    if (InBlocks(view->dtype) &&
        (view->dim % kQuantBlock != 0 || view->row_stride % kQuantBlock != 0 ||
         view->head_stride % kQuantBlock != 0))
      return Bad(absl::StrCat(DTypeName(view->dtype), " rows of width ", view->dim, ", strides ",
                              view->row_stride, " and ", view->head_stride, "; they are blocks of ",
                              kQuantBlock));
  }
  if (!in_.mask.empty()) {
    if (!a_.options_.logit_mask) return Bad("a mask needs AttendOptions::logit_mask");
    if (in_.mask.zero != nullptr && p.branches.size() != 1)
      return Bad("a mask's zero panels are told for plans of one branch");
    if (in_.mask.stride < p.kv_len)
      return Bad(absl::StrCat("the mask's rows lie ", in_.mask.stride, " elements apart, over ",
                              p.kv_len, " keys"));
  }
  if (out_.o.rows != p.q_count || out_.o.heads != s.heads || out_.o.dim != s.value_dim)
    return Bad("o has the wrong shape");
  if (ws_.bytes < a_.workspace_bytes())
    return Bad(absl::StrCat("workspace of ", ws_.bytes, " bytes, needs ", a_.workspace_bytes()));
  if (ex_.num_workers() > s.workers)
    return Bad(
        absl::StrCat("the executor has ", ex_.num_workers(), " workers, made for ", s.workers));
  const bool one_softmax = p.merge == Merge::kLse;
  if (!one_softmax && (out_.lse != nullptr || !out_.state.empty() || !out_.resume.empty() ||
                       !out_.probabilities.empty() || out_.feedback.any()))
    return Bad("a plan of several softmaxes has no lse, state, probabilities or feedback");
  if (!out_.probabilities.empty() &&
      (!a_.options_.probabilities || out_.probabilities.rows < p.heads * p.q_count ||
       out_.probabilities.cols < p.kv_len))
    return Bad("probabilities need AttendOptions::probabilities and [heads * queries, keys]");
  if (out_.feedback.any() && !a_.options_.feedback)
    return Bad("feedback needs AttendOptions::feedback");
  if (a_.options_.mode == AttendMode::kKvMajor && !grouped_ && p.q_count > 1) {
    return absl::UnimplementedError(
        "attend: KV-major runs plans with one branch of exact entries, ascending, in the queries' "
        "order, "
        "without bias, masks, permutation, stop rule or second pass");
  }
  return absl::OkStatus();
}

void AttendRun::Execute() {
  ClearWorkers();
  if (fused_) {
    ExecuteFused();
  } else {
    ExecutePhased();
  }
  CollectWorkers();
}

void AttendRun::ClearWorkers() const {
  for (int w = 0; w < ex_.num_workers(); ++w) {
    *Worker<AttentionCounters>(w, a_.at_.counters) = AttentionCounters{};
    if (!a_.options_.feedback) continue;
    std::memset(Worker<int64_t>(w, a_.at_.mass), 0, plan_.heads * plan_.kv_len * sizeof(int64_t));
    std::memset(Worker<int64_t>(w, a_.at_.norm), 0, plan_.heads * sizeof(int64_t));
  }
}

void AttendRun::CollectWorkers() const {
  const auto collect = [&](float* to, size_t at, int64_t n) {
    for (int64_t i = 0; i < n && to != nullptr; ++i) {
      int64_t sum = 0;
      for (int w = 0; w < ex_.num_workers(); ++w) sum += Worker<int64_t>(w, at)[i];
      to[i] = static_cast<float>(static_cast<double>(sum) / attend_internal::kFixedOne);
    }
  };
  collect(out_.feedback.key_mass, a_.at_.mass, plan_.heads * plan_.kv_len);
  collect(out_.feedback.head_norm, a_.at_.norm, plan_.heads);
  if (out_.counters == nullptr) return;
  for (int w = 0; w < ex_.num_workers(); ++w)
    out_.counters->Add(*Worker<AttentionCounters>(w, a_.at_.counters));
  const bool bidirectional =
      in_.mask.empty() && std::ranges::any_of(plan_.branches, ShowsLaterKeys);
  for (int64_t i = 0; i < plan_.q_count; ++i) {
    const int64_t seen =
        bidirectional ? plan_.kv_len : std::min(plan_.kv_len, plan_.position(i) + 1);
    out_.counters->causal_pairs += plan_.heads * seen;
  }
}

bool AttendRun::Fused() const {
  if (plan_.merge == Merge::kMean) return false;
  const AttentionBranch& first = plan_.branches[0];
  for (const AttentionBranch& b : plan_.branches) {
    if (b.scope != first.scope || b.tile != first.tile) return false;
    if (!b.q_order.empty()) return false;  // a query may stand in no tile
  }
  return true;
}

bool AttendRun::Groupable() const {
  if (!fused_ || plan_.branches.size() != 1 || plan_.merge != Merge::kLse || plan_.q_count <= 1 ||
      !in_.mask.empty() || !out_.probabilities.empty() || out_.feedback.key_mass != nullptr)
    return false;
  const AttentionBranch& b = plan_.branches[0];
  const bool kv_major = a_.options_.mode == AttendMode::kKvMajor;
  const bool tokens = b.encoding == Encoding::kTokens && b.tile == 1;
  if (!kv_major && !(tokens && a_.options_.token_group > 1)) return false;
  if (b.ByToken() && b.encoding != Encoding::kTokens) return false;
  if (b.encoding == Encoding::kPattern || !b.q_order.empty() || !plan_.key_perm.empty() ||
      !plan_.key_bias.empty() || !b.entry_bias.empty() || !b.row_mask.empty() ||
      b.order != EntryOrder::kAscending || b.stop != StopRule::kNone)
    return false;
  if (b.encoding == Encoding::kTokens)
    return b.token_mask != MaskClass::kNone && b.token_mask != MaskClass::kLowerBound;
  for (int64_t r = 0; r < b.num_lists * b.num_tiles; ++r) {
    for (uint32_t e = 0; e < b.rows.count[r]; ++e) {
      const PlanEntry& x = b.entries[b.rows.begin[r] + e];
      if (x.state != EntryState::kExact || x.mask == MaskClass::kNone) return false;
      if (x.mask == MaskClass::kLowerBound && b.tile > 1) return false;
    }
  }
  return true;
}

AttendRun::Cut AttendRun::CutOf(const AttentionBranch& b) const {
  Cut cut;
  cut.per_query_head = b.scope == ListScope::kQueryHead ||
                       (!plan_.key_perm.empty() && plan_.perm_scope == ListScope::kQueryHead);
  cut.streams = cut.per_query_head ? plan_.heads : plan_.kv_heads;
  cut.heads = cut.per_query_head ? 1 : g_;
  if (grouped_) {
    const int64_t most = a_.rows_ / g_;
    const int64_t want = a_.options_.mode == AttendMode::kKvMajor
                             ? std::min(most, attend_internal::kKvMajorQueries)
                             : std::min(most, a_.options_.token_group);
    cut.tiles_per_item = std::max<int64_t>(1, want / b.tile);
  }
  cut.items_per_stream = (b.num_tiles + cut.tiles_per_item - 1) / cut.tiles_per_item;
  return cut;
}

AttendRun::Rows AttendRun::RowsOf(const AttentionBranch& b, const Cut& cut, int64_t item) const {
  Rows r;
  const int64_t stream = item / cut.items_per_stream;
  r.branch = &b;
  r.kv = cut.per_query_head ? stream / g_ : stream;
  r.head0 = cut.per_query_head ? stream : stream * g_;
  r.heads = cut.heads;
  r.list = ListOf(plan_, b, r.head0);
  r.tile = item % cut.items_per_stream * cut.tiles_per_item;
  const int64_t last = std::min(b.num_tiles, r.tile + cut.tiles_per_item) - 1;
  r.slot0 = b.TileBegin(r.list, r.tile);
  r.n = b.TileEnd(r.list, last, plan_.q_count) - r.slot0;
  return r;
}

int64_t AttendRun::Cost(const Cut& cut, const AttentionBranch& b, int64_t item) const {
  const Rows r = RowsOf(b, cut, item);
  if (b.encoding == Encoding::kPattern) return r.n;
  const int64_t last = std::min(b.num_tiles, r.tile + cut.tiles_per_item);
  int64_t keys = 0;
  for (int64_t t = r.tile; t < last; ++t) {
    const int64_t row = b.row_of(r.list, t);
    if (b.ByToken()) {
      keys += b.rows.count[row] * (b.encoding == Encoding::kTokens ? 1 : b.block);
      continue;
    }
    for (uint32_t e = 0; e < b.rows.count[row]; ++e)
      keys +=
          b.entries[b.rows.begin[row] + e].len * (b.encoding == Encoding::kBlocks ? b.block : 1);
  }
  return keys * b.tile;
}

template <class Item>
void AttendRun::ForEachItem(const Cut& cut, bool all_branches, const AttentionBranch& b,
                            Item&& item) {
  const int64_t items = cut.streams * cut.items_per_stream;
  uint32_t* order = ws_.At<uint32_t>(a_.at_.order);
  int64_t* cost = ws_.At<int64_t>(a_.at_.cost);
  for (int64_t i = 0; i < items; ++i) {
    order[i] = static_cast<uint32_t>(i);
    cost[i] = 0;
    for (const AttentionBranch& x : plan_.branches) {
      if (all_branches || &x == &b) cost[i] += Cost(cut, x, i);
    }
  }
  std::sort(order, order + items, [cost](uint32_t x, uint32_t y) {
    return cost[x] != cost[y] ? cost[x] > cost[y] : x < y;
  });
  ex_.ParallelFor(items, 1, [&](int64_t begin, int64_t end, int w) {
    for (int64_t i = begin; i < end; ++i) item(order[i], w);
  });
}

void AttendRun::ExecuteFused() {
  const AttentionBranch& first = plan_.branches[0];
  const Cut cut = CutOf(first);
  if (splits_ == 1) {
    ForEachItem(cut, true, first, [&](int64_t item, int w) { FusedItem(cut, item, w); });
    return;
  }
  // All streams of a piece of the list, then the next piece: the heads of a key lie side by side.
  ex_.ParallelFor(cut.streams * splits_, 1, [&](int64_t begin, int64_t end, int w) {
    for (int64_t i = begin; i < end; ++i) Split(cut, i % cut.streams, i / cut.streams, w);
  });
  for (int64_t stream = 0; stream < cut.streams; ++stream) MergeSplits(cut, stream);
}

void AttendRun::PackQueries(const Rows& r, int w) const {
  float* q = Worker<float>(w, a_.at_.q);
  const float scale = in_.scale * kernels::kLog2E;
  EachRow(r, [&](int64_t row, int64_t, int64_t query, int64_t head) {
    const float* from = in_.q.at(query, head);
    float* to = q + row * in_.q.dim;
    for (int64_t x = 0; x < in_.q.dim; ++x) to[x] = from[x] * scale;
  });
  if (bf16_ != nullptr)
    bf16_->pack_queries(q, r.count(), in_.q.dim, Worker<uint16_t>(w, a_.at_.aq));
}

AttendRun::PanelState AttendRun::RowSide(const Rows& r, int w, int64_t branch) const {
  PanelState p;
  p.q = Worker<float>(w, a_.at_.q);
  p.rows = r.count();
  p.d = in_.q.dim;
  p.dv = a_.dv_pad_;
  p.m = Worker<float>(w, a_.at_.m) + branch * a_.rows_;
  p.l = Worker<float>(w, a_.at_.l) + branch * a_.rows_;
  p.o = Worker<float>(w, a_.at_.o) + branch * a_.rows_ * a_.dv_pad_;
  p.scratch = Worker<float>(w, a_.at_.scratch);
  p.softcap = a_.options_.softcap;
  return p;
}

void AttendRun::Clear(const PanelState& p) {
  std::fill(p.m, p.m + p.rows, -HUGE_VALF);
  std::fill(p.l, p.l + p.rows, 0.0f);
  std::fill(p.o, p.o + p.rows * p.dv, 0.0f);
}

void AttendRun::Resume(const Rows& r, const PanelState& p) const {
  Clear(p);
  if (out_.resume.empty()) return;
  const int64_t dv = a_.shape_.value_dim;
  EachRow(r, [&](int64_t row, int64_t at, int64_t, int64_t) {
    p.m[row] = out_.resume.m[at];
    p.l[row] = out_.resume.l[at];
    std::memcpy(p.o + row * a_.dv_pad_, out_.resume.o + at * dv, dv * sizeof(float));
  });
}

void AttendRun::Finish(const Rows& r, const PanelState& p, int w) const {
  const int64_t dv = a_.shape_.value_dim;
  EachRow(r, [&](int64_t row, int64_t at, int64_t query, int64_t head) {
    const float l = p.l[row];
    const bool empty = l == 0;  // a NaN is not
    const float inv = empty ? 0.0f : 1.0f / l;
    const float* from = p.o + row * a_.dv_pad_;
    float* to = out_.o.at(query, head);
    for (int64_t x = 0; x < dv; ++x) to[x] = empty ? 0.0f : from[x] * inv;
    if (out_.lse != nullptr)
      out_.lse[at] = empty ? -HUGE_VALF : (p.m[row] + std::log2(l)) * kernels::kLn2;
    if (!out_.state.empty()) {
      out_.state.m[at] = p.m[row];
      out_.state.l[at] = l;
      std::memcpy(out_.state.o + at * dv, from, dv * sizeof(float));
    }
    if (out_.feedback.row_max != nullptr) out_.feedback.row_max[at] = inv;  // 2^(m - m) / l
    if (out_.feedback.head_norm != nullptr) {
      double norm = 0;
      for (int64_t x = 0; x < dv; ++x) norm += std::fabs(to[x]);
      Worker<int64_t>(w, a_.at_.norm)[head] += attend_internal::ToFixed(norm);
    }
  });
}

float AttendRun::Fold(PanelState& p, const KvView& k, const KvView& v, int64_t kv,
                      const Panel& panel, const Panel* next, int w) const {
  const kernels::PanelSource ks = PanelRows(k, kv, panel);
  const kernels::PanelSource vs = PanelRows(v, kv, panel);
  p.n = panel.n;
  p.bias = panel.has_bias ? panel.bias : nullptr;
  if (few_rows_ && p.rows <= kernels::kFewRows) {
    kernels::PanelAhead ahead;
    // A row or two are done with a panel before its successor is there, and so are a few where a
    // long cache is read from end to end: they ask for all of it at once. Three rows and more ask
    // for it while they multiply, a few of them for what was lost of so many questions at once.
    const bool all_at_once =
        p.rows <= 2 || (p.rows <= 4 && next != nullptr && next->ids == nullptr);
    if (next != nullptr && all_at_once) Prefetch(*next, kv);
    if (next != nullptr && p.rows > 2)
      ahead = {PanelRows(in_.k, kv, *next), PanelRows(in_.v, kv, *next), next->n};
    return kernels::AttendRows(p, ks, vs, ahead);
  }
  if (next != nullptr) Prefetch(*next, kv);
  // What hidden keys hold must not leak through zeros times infinity.
  if (bf16_ != nullptr && k.dtype == DType::kBF16 && v.dtype == DType::kBF16 &&
      p.row_bias == nullptr && (p.mask == nullptr || kernels::AllFinite(vs, p.n, v.dim))) {
    uint16_t* ak = Worker<uint16_t>(w, a_.at_.ak);
    uint16_t* av = Worker<uint16_t>(w, a_.at_.av);
    bf16_->pack_keys(ks, p.n, p.d, ak);
    bf16_->pack_values(vs, p.n, v.dim, av);
    return bf16_->attend(p, Worker<uint16_t>(w, a_.at_.aq), ak, av);
  }
  PackFp32(p, ks, vs, v.dim, w);
  return kernels::AttendPanel(p);
}

void AttendRun::PackFp32(PanelState& p, const kernels::PanelSource& ks,
                         const kernels::PanelSource& vs, int64_t dv, int w) const {
  float* kt = Worker<float>(w, a_.at_.kt);
  kernels::PackKeyPanel(ks, p.n, p.d, kt);
  p.kt = kt;
  if (vs.dtype == DType::kF32 && vs.ids == nullptr && dv == a_.dv_pad_) {
    p.v = static_cast<const float*>(vs.base);
    p.v_stride = vs.row_bytes / int64_t{sizeof(float)};
  } else {
    float* packed = Worker<float>(w, a_.at_.v);
    kernels::PackValuePanel(vs, p.n, dv, p.dv, packed);
    p.v = packed;
    p.v_stride = p.dv;
  }
}

void AttendRun::Count(const PanelState& p, bool summary, const KvView& k, const KvView& v,
                      int w) const {
  AttentionCounters& c = *Worker<AttentionCounters>(w, a_.at_.counters);
  int64_t pairs = p.rows * p.n;
  if (p.mask != nullptr) {
    pairs = 0;
    for (int64_t r = 0; r < p.rows; ++r) pairs += std::popcount(p.mask[r]);
  }
  (summary ? c.summary_pairs : c.exact_pairs) += pairs;
  c.computed_pairs += p.rows * p.n;
  c.macs += p.rows * p.n * (k.dim + v.dim);
  c.kv_bytes += p.n * (DTypeBytes(k.dtype, k.dim) + DTypeBytes(v.dtype, v.dim));
}

// Asks for the keys and values of a panel ahead of its use.
void AttendRun::Prefetch(const Panel& p, int64_t kv) const {
  constexpr int64_t kLine = 64;
  for (int64_t j = 0; j < p.n; ++j) {
    const int64_t key = p.ids != nullptr ? p.ids[j] : p.start + j;
    for (const KvView* view : {&in_.k, &in_.v}) {
      const std::byte* at = view->at(key, kv);
      for (int64_t b = 0; b < DTypeBytes(view->dtype, view->dim); b += kLine)
        __builtin_prefetch(at + b, 0, 2);
    }
  }
}

// Who sees what of a panel: from the plan, and from the host's mask.
void AttendRun::SetMasks(const Rows& r, const PanelCursor& cursor, const Panel& panel,
                         PanelState& p, int w) const {
  const bool ranked = r.branch->encoding == Encoding::kRankedPrefix;
  uint64_t* masks = Worker<uint64_t>(w, a_.at_.mask);
  p.mask = nullptr;
  p.row_bias = nullptr;
  if (ranked || !cursor.AllVisible(panel)) {
    p.mask = masks;
    for (int64_t i = 0; i < r.n; ++i) {
      const uint64_t visible = cursor.Visible(panel, i);
      for (int64_t h = 0; h < r.heads; ++h) masks[i * r.heads + h] = visible;
    }
    for (int64_t h = 0; ranked && h < r.heads; ++h) {
      const uint64_t keep = cursor.HeadSees(panel, r.head0 + h);
      for (int64_t i = 0; i < r.n; ++i) masks[i * r.heads + h] &= keep;
    }
  }
  if (!in_.mask.empty() && panel.table == 0 && !MaskIsZero(r, panel)) AddLogitMask(r, panel, p, w);
}

bool AttendRun::MaskIsZero(const Rows& r, const Panel& panel) const {
  if (in_.mask.zero == nullptr || panel.ids != nullptr) return false;
  const int64_t words = (plan_.kv_len + 64 * kPanelKeys - 1) / (64 * kPanelKeys);
  const int64_t at = panel.start / kPanelKeys;
  return ((in_.mask.zero[r.tile * words + at / 64] >> (at % 64)) & 1) != 0;
}

void AttendRun::AddLogitMask(const Rows& r, const Panel& panel, PanelState& p, int w) const {
  uint64_t* masks = Worker<uint64_t>(w, a_.at_.mask);
  float* bias = Worker<float>(w, a_.at_.row_bias);
  const uint64_t all = attend_internal::KeysBelow(panel.n);
  bool biased = false;
  for (int64_t i = 0; i < r.n; ++i) {
    const attend_internal::MaskRow row(in_.mask, r.query(i), panel);
    const uint64_t visible = row.Visible() & all;
    if (p.mask == nullptr && visible != all) {
      std::fill(masks, masks + r.count(), all);
      p.mask = masks;
    }
    for (int64_t h = 0; p.mask != nullptr && h < r.heads; ++h) masks[i * r.heads + h] &= visible;
    if (row.HasValues() && !biased) std::fill(bias, bias + i * kPanelKeys, 0.0f);
    biased = biased || row.HasValues();
    if (biased) row.WriteBias(bias + i * kPanelKeys);
  }
  if (!biased) return;
  p.row_bias = bias;
  p.row_group = r.heads;
  p.slopes = in_.mask.slopes != nullptr ? in_.mask.slopes + r.head0 : nullptr;
}

void AttendRun::Walk(const Rows& r, PanelState& p, int w, int64_t first, int64_t last) const {
  const AttentionBranch& b = *r.branch;
  const attend_internal::TilePositions positions(plan_, b, r.list, r.slot0, r.n);
  PanelCursor cursor(plan_, b, positions, r.tile, r.kv, r.head0);
  AttentionCounters& counters = *Worker<AttentionCounters>(w, a_.at_.counters);
  Panel panels[2];  // one ahead, so that its keys can be fetched while this one is worked on
  bool more = cursor.Next(panels[0]);
  for (int64_t index = 0; more; ++index) {
    const Panel& panel = panels[index & 1];
    Panel& next = panels[(index + 1) & 1];
    more = cursor.Next(next);
    if (index < first) continue;
    if (index >= last) break;
    const KvView& k = panel.table > 0 ? plan_.tables[panel.table - 1].k : in_.k;
    const KvView& v = panel.table > 0 ? plan_.tables[panel.table - 1].v : in_.v;
    SetMasks(r, cursor, panel, p, w);
    const Panel* ahead = more && next.table == 0 ? &next : nullptr;
    const float gain = Fold(p, k, v, r.kv, panel, ahead, w);
    Count(p, panel.table > 0, k, v, w);
    if (b.stop == StopRule::kGain && gain < b.stop_tau) {
      counters.stopped_panels += more;
      while (more && cursor.Next(panels[0])) ++counters.stopped_panels;
      break;
    }
  }
  counters.stopped_panels += cursor.stopped_entries();
}

void AttendRun::WalkProbabilities(const Rows& r, PanelState& p, int w) const {
  const attend_internal::TilePositions positions(plan_, *r.branch, r.list, r.slot0, r.n);
  PanelCursor cursor(plan_, *r.branch, positions, r.tile, r.kv, r.head0);
  float* prob = Worker<float>(w, a_.at_.prob);
  Panel panel;
  while (cursor.Next(panel)) {
    if (panel.table > 0) continue;  // summaries have no key of their own
    p.n = panel.n;
    SetMasks(r, cursor, panel, p, w);
    p.bias = panel.has_bias ? panel.bias : nullptr;
    kernels::PackKeyPanel(PanelRows(in_.k, r.kv, panel), p.n, p.d, Worker<float>(w, a_.at_.kt));
    p.kt = Worker<float>(w, a_.at_.kt);
    kernels::PanelProbabilities(p, prob, kPanelKeys);
    Worker<AttentionCounters>(w, a_.at_.counters)->feedback_pairs += p.rows * p.n;
    AddProbabilities(r, panel, prob, w);
  }
}

void AttendRun::AddProbabilities(const Rows& r, const Panel& panel, const float* prob,
                                 int w) const {
  int64_t* mass = a_.options_.feedback ? Worker<int64_t>(w, a_.at_.mass) : nullptr;
  EachRow(r, [&](int64_t row, int64_t, int64_t query, int64_t head) {
    for (int64_t j = 0; j < panel.n; ++j) {
      const int64_t key = panel.ids != nullptr ? panel.ids[j] : panel.start + j;
      const float x = prob[row * kPanelKeys + j];
      if (!out_.probabilities.empty())
        out_.probabilities.row(head * plan_.q_count + query)[key] = x;
      if (mass != nullptr) mass[head * plan_.kv_len + key] += attend_internal::ToFixed(x);
    }
  });
}

void AttendRun::FusedItem(const Cut& cut, int64_t item, int w) const {
  Rows r = RowsOf(plan_.branches[0], cut, item);
  if (r.n == 0) return;
  PackQueries(r, w);
  if (grouped_) return Group(r, cut, item, w);

  if (plan_.merge ==
      Merge::kLse) {  // branches are parts of one softmax: one state runs through them
    PanelState p = RowSide(r, w, 0);
    Resume(r, p);
    for (const AttentionBranch& b : plan_.branches) Walk(RowsOf(b, cut, item), p, w, 0, kAllPanels);
    Finish(r, p, w);
    if (!second_pass_) return;
    EachRow(r, [&](int64_t, int64_t, int64_t query, int64_t head) {
      if (out_.probabilities.empty()) return;
      float* to = out_.probabilities.row(head * plan_.q_count + query);
      std::fill(to, to + plan_.kv_len, 0.0f);
    });
    for (const AttentionBranch& b : plan_.branches) WalkProbabilities(RowsOf(b, cut, item), p, w);
    return;
  }

  for (size_t bi = 0; bi < plan_.branches.size(); ++bi) {
    const AttentionBranch& b = plan_.branches[bi];
    PanelState p = RowSide(r, w, static_cast<int64_t>(bi));
    Clear(p);
    if (b.init_from >= 0) {
      const PanelState from = RowSide(r, w, b.init_from);
      std::copy(from.m, from.m + p.rows, p.m);
      std::copy(from.l, from.l + p.rows, p.l);
      std::copy(from.o, from.o + p.rows * p.dv, p.o);
    }
    Walk(RowsOf(b, cut, item), p, w, 0, kAllPanels);
  }
  WeightedSum(r, w);
}

void AttendRun::WeightedSum(const Rows& r, int w) const {
  const int64_t dv = a_.shape_.value_dim;
  EachRow(r, [&](int64_t row, int64_t at, int64_t query, int64_t head) {
    float* to = out_.o.at(query, head);
    std::fill(to, to + dv, 0.0f);
    for (size_t bi = 0; bi < plan_.branches.size(); ++bi) {
      const PanelState p = RowSide(r, w, static_cast<int64_t>(bi));
      if (p.l[row] == 0) continue;
      const float weight = plan_.branch_weight[bi * plan_.q_count * plan_.heads + at] / p.l[row];
      for (int64_t x = 0; x < dv; ++x) to[x] += weight * p.o[row * a_.dv_pad_ + x];
    }
  });
}

void AttendRun::ExecutePhased() {
  // States start empty, or where the caller left off.
  for (size_t bi = 0; bi < (plan_.merge == Merge::kWeightedSum ? plan_.branches.size() : 1); ++bi) {
    const auto b = static_cast<int64_t>(bi);
    std::fill(StoredM(b), StoredM(b) + a_.slots_, -HUGE_VALF);
    std::fill(StoredL(b), StoredL(b) + a_.slots_, 0.0f);
    std::fill(StoredO(b), StoredO(b) + a_.slots_ * a_.dv_pad_, 0.0f);
  }
  const int64_t dv = a_.shape_.value_dim;
  for (int64_t at = 0; !out_.resume.empty() && at < plan_.q_count * plan_.heads; ++at) {
    StoredM(0)[at] = out_.resume.m[at];
    StoredL(0)[at] = out_.resume.l[at];
    std::memcpy(StoredO(0) + at * a_.dv_pad_, out_.resume.o + at * dv, dv * sizeof(float));
  }
  for (size_t bi = 0; bi < plan_.branches.size(); ++bi) {
    const AttentionBranch& b = plan_.branches[bi];
    if (plan_.merge == Merge::kWeightedSum && b.init_from >= 0)
      CopyStored(b.init_from, static_cast<int64_t>(bi));
    const Cut cut = CutOf(b);
    ForEachItem(cut, false, b, [&](int64_t item, int w) { PhasedItem(bi, cut, item, w); });
  }
  FinishStored();
  for (size_t bi = 0; second_pass_ && bi < plan_.branches.size(); ++bi) {
    const AttentionBranch& b = plan_.branches[bi];
    const Cut cut = CutOf(b);
    ForEachItem(cut, false, b, [&](int64_t item, int w) {
      const Rows r = RowsOf(b, cut, item);
      if (r.n == 0) return;
      PackQueries(r, w);
      PanelState p = RowSide(r, w, 0);
      Load(r, p, 0);
      WalkProbabilities(r, p, w);
    });
  }
}

void AttendRun::PhasedItem(size_t bi, const Cut& cut, int64_t item, int w) const {
  const AttentionBranch& b = plan_.branches[bi];
  const Rows r = RowsOf(b, cut, item);
  if (r.n == 0) return;
  PackQueries(r, w);
  PanelState p = RowSide(r, w, 0);
  const int64_t own = plan_.merge == Merge::kWeightedSum ? static_cast<int64_t>(bi) : 0;
  Load(r, p, own);
  Walk(r, p, w, 0, kAllPanels);
  Store(r, p, own);
}

void AttendRun::Load(const Rows& r, const PanelState& p, int64_t branch) const {
  for (int64_t i = 0; i < r.n; ++i) {
    for (int64_t h = 0; h < r.heads; ++h) {
      const int64_t row = i * r.heads + h;
      const int64_t at = StateAt(r, i, h);
      p.m[row] = StoredM(branch)[at];
      p.l[row] = StoredL(branch)[at];
      std::memcpy(p.o + row * p.dv, StoredO(branch) + at * p.dv, p.dv * sizeof(float));
    }
  }
}

void AttendRun::Store(const Rows& r, const PanelState& p, int64_t branch) const {
  for (int64_t i = 0; i < r.n; ++i) {
    for (int64_t h = 0; h < r.heads; ++h) {
      const int64_t row = i * r.heads + h;
      const int64_t at = StateAt(r, i, h);
      StoredM(branch)[at] = p.m[row];
      StoredL(branch)[at] = p.l[row];
      std::memcpy(StoredO(branch) + at * p.dv, p.o + row * p.dv, p.dv * sizeof(float));
    }
  }
}

// A branch goes on from another's state in every row, also in those of queries that stand in none
// of its tiles.
void AttendRun::CopyStored(int64_t from, int64_t to) const {
  std::copy_n(StoredM(from), a_.slots_, StoredM(to));
  std::copy_n(StoredL(from), a_.slots_, StoredL(to));
  std::copy_n(StoredO(from), a_.slots_ * a_.dv_pad_, StoredO(to));
}

void AttendRun::FinishStored() const {
  const int64_t dv = a_.shape_.value_dim;
  const AttentionBranch& first = plan_.branches[0];
  if (plan_.merge == Merge::kLse) {
    Rows r;  // every (query, head) is a row of its own
    AttentionBranch identity;
    r.branch = &identity;
    r.heads = plan_.heads;
    r.n = plan_.q_count;
    PanelState p;
    p.m = StoredM(0);
    p.l = StoredL(0);
    p.o = StoredO(0);
    Finish(r, p, 0);
    for (int64_t row = 0; !out_.probabilities.empty() && row < plan_.heads * plan_.q_count; ++row)
      std::fill(out_.probabilities.row(row), out_.probabilities.row(row) + plan_.kv_len, 0.0f);
    return;
  }
  for (int64_t i = 0; i < plan_.q_count; ++i) {
    for (int64_t h = 0; h < plan_.heads; ++h) std::fill_n(out_.o.at(i, h), dv, 0.0f);
  }
  const auto add = [&](int64_t branch, int64_t at, float share, float* to) {
    const float l = StoredL(branch)[at];
    if (l == 0) return;
    const float* from = StoredO(branch) + at * a_.dv_pad_;
    for (int64_t x = 0; x < dv; ++x) to[x] += share / l * from[x];
  };
  if (plan_.merge == Merge::kWeightedSum) {
    const int64_t each = plan_.q_count * plan_.heads;
    for (int64_t at = 0; at < each; ++at) {
      for (int64_t b = 0; b < std::ssize(plan_.branches); ++b)
        add(b, at, plan_.branch_weight[b * each + at],
            out_.o.at(at / plan_.heads, at % plan_.heads));
    }
    return;
  }
  // Means over memberships: the sums run over the slots in order, so they do not depend on who
  // computed them.
  uint32_t* times = ws_.At<uint32_t>(a_.at_.order);
  for (int64_t h = 0; h < plan_.heads && first.num_tiles > 0; ++h) {
    const int64_t list = ListOf(plan_, first, h);
    const int64_t begin = first.TileBegin(list, 0);
    const int64_t end = first.TileEnd(list, first.num_tiles - 1, plan_.q_count);
    std::fill(times, times + plan_.q_count, 0u);
    for (int64_t s = begin; s < end; ++s) ++times[first.Query(list, s)];
    for (int64_t s = begin; s < end; ++s) {
      const int64_t query = first.Query(list, s);
      add(0, s * plan_.heads + h, 1.0f / static_cast<float>(times[query]), out_.o.at(query, h));
    }
  }
}

// Bit k of a tile's map says that it wants key k.
void AttendRun::MarkKeys(const Rows& r, int64_t tiles, uint64_t* bits) const {
  const AttentionBranch& b = *r.branch;
  const int64_t words = (plan_.kv_len + 63) / 64;
  std::memset(bits, 0, tiles * words * sizeof(uint64_t));
  for (int64_t t = 0; t < tiles; ++t) {
    uint64_t* own = bits + t * words;
    const int64_t row = b.row_of(r.list, r.tile + t);
    for (uint32_t e = 0; e < b.rows.count[row]; ++e) {
      if (b.encoding == Encoding::kTokens) {
        const uint32_t id = b.tokens[b.rows.begin[row] + e];
        own[id >> 6] |= uint64_t{1} << (id & 63);
        continue;
      }
      const PlanEntry& x = b.entries[b.rows.begin[row] + e];
      int64_t lo = 0;
      int64_t hi = 0;
      EntryKeys(b, x, plan_.kv_len, &lo, &hi);
      if (x.mask == MaskClass::kLowerBound)
        lo = std::max(lo, plan_.position((r.tile + t) * b.tile) - b.window + 1);
      for (int64_t at = lo; at < hi;) {
        const int64_t end = std::min(hi, (at | 63) + 1);
        const uint64_t ones = end - at == 64 ? ~uint64_t{0} : (uint64_t{1} << (end - at)) - 1;
        own[at >> 6] |= ones << (at & 63);
        at = end;
      }
    }
  }
}

// Folds a panel into copies of those rows alone that see any of it. A row's bits do not depend on
// the others.
void AttendRun::FoldWanted(const PanelState& p, int64_t kv, const Panel& panel, int w) const {
  PanelState some = p;
  float* q = Worker<float>(w, a_.at_.q) + a_.rows_ * p.d;
  uint64_t* masks = Worker<uint64_t>(w, a_.at_.mask) + a_.rows_;
  some.q = q;
  some.mask = masks;
  some.m = p.m + a_.rows_;
  some.l = p.l + a_.rows_;
  some.o = p.o + a_.rows_ * p.dv;
  some.rows = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.mask[row] == 0) continue;
    const int64_t to = some.rows++;
    masks[to] = p.mask[row];
    some.m[to] = p.m[row];
    some.l[to] = p.l[row];
    std::memcpy(q + to * p.d, p.q + row * p.d, p.d * sizeof(float));
    std::memcpy(some.o + to * p.dv, p.o + row * p.dv, p.dv * sizeof(float));
  }
  if (some.rows == 0) return;
  Fold(some, in_.k, in_.v, kv, panel, nullptr, w);
  Count(some, false, in_.k, in_.v, w);
  int64_t from = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.mask[row] == 0) continue;
    p.m[row] = some.m[from];
    p.l[row] = some.l[from];
    std::memcpy(p.o + row * p.dv, some.o + from * p.dv, p.dv * sizeof(float));
    ++from;
  }
}

// Several tiles at once: each panel is loaded once for all of them.
void AttendRun::Group(const Rows& r, const Cut& cut, int64_t, int w) const {
  const AttentionBranch& b = *r.branch;
  const int64_t tiles = std::min(b.num_tiles, r.tile + cut.tiles_per_item) - r.tile;
  const int64_t words = (plan_.kv_len + 63) / 64;
  uint64_t* bits = Worker<uint64_t>(w, a_.at_.bits);
  MarkKeys(r, tiles, bits);

  const bool kv_major = a_.options_.mode == AttendMode::kKvMajor;
  PanelState p = RowSide(r, w, 0);
  Resume(r, p);
  uint64_t* masks = Worker<uint64_t>(w, a_.at_.mask);
  Panel panel;
  uint32_t ids[kPanelKeys];
  const auto fold = [&](const uint32_t* gather, int64_t start, int64_t n) {
    for (int64_t i = 0; i < r.n; ++i) {
      const int64_t query = plan_.position(r.slot0 + i);
      const uint64_t* own = bits + i / b.tile * words;
      uint64_t m = 0;
      if (gather == nullptr) {
        const int64_t seen = query - start + 1;
        m = seen <= 0    ? 0
            : seen >= 64 ? own[start >> 6]
                         : own[start >> 6] & ((uint64_t{1} << seen) - 1);
      } else {
        for (int64_t j = 0; j < n; ++j) {
          const uint64_t wanted = own[gather[j] >> 6] >> (gather[j] & 63) & 1;
          m |= (wanted & static_cast<uint64_t>(gather[j] <= query)) << j;
        }
      }
      for (int64_t h = 0; h < r.heads; ++h) masks[i * r.heads + h] = m;
    }
    panel.ids = gather;
    panel.start = start;
    panel.n = n;
    p.mask = masks;
    const int64_t wanted = r.count() - std::count(masks, masks + r.count(), uint64_t{0});
    if (kv_major && bf16_ == nullptr && wanted * 4 <= r.count() * 3) {
      FoldWanted(p, r.kv, panel, w);
      return;
    }
    Fold(p, in_.k, in_.v, r.kv, panel, nullptr, w);
    Count(p, false, in_.k, in_.v, w);
  };
  int64_t pending = 0;
  for (int64_t word = 0; word < words; ++word) {
    uint64_t any = 0;
    for (int64_t t = 0; t < tiles; ++t) any |= bits[t * words + word];
    if (std::popcount(any) >= attend_internal::kGatherBelow) {
      fold(nullptr, word * 64, std::min<int64_t>(64, plan_.kv_len - word * 64));
      continue;
    }
    for (; any != 0; any &= any - 1) {
      ids[pending++] = static_cast<uint32_t>(word * 64 + std::countr_zero(any));
      if (pending == kPanelKeys) {
        fold(ids, 0, pending);
        pending = 0;
      }
    }
  }
  if (pending > 0) fold(ids, 0, pending);
  Finish(r, p, w);
}

float* AttendRun::SplitState(const Cut& cut, int64_t stream, int64_t split) const {
  return ws_.At<float>(a_.at_.split) + (stream * splits_ + split) * cut.heads * (a_.dv_pad_ + 2);
}

void AttendRun::Split(const Cut& cut, int64_t stream, int64_t split, int w) const {
  Rows r = RowsOf(plan_.branches[0], cut, stream);
  PackQueries(r, w);
  PanelState p = RowSide(r, w, 0);
  Clear(p);
  const int64_t per = a_.options_.split_keys / kPanelKeys;
  const int64_t last = split + 1 == splits_ ? kAllPanels : (split + 1) * per;
  int64_t offset = 0;  // panels are numbered through all branches
  for (const AttentionBranch& b : plan_.branches) {
    r = RowsOf(b, cut, stream);
    Walk(r, p, w, split * per - offset, last - offset);
    if (plan_.branches.size() == 1) break;
    const attend_internal::TilePositions positions(plan_, b, r.list, r.slot0, r.n);
    PanelCursor cursor(plan_, b, positions, r.tile, r.kv, r.head0);
    Panel panel;
    while (cursor.Next(panel)) ++offset;
  }
  float* s = SplitState(cut, stream, split);
  for (int64_t row = 0; row < r.count(); ++row) {
    float* to = s + row * (a_.dv_pad_ + 2);
    to[0] = p.m[row];
    to[1] = p.l[row];
    std::memcpy(to + 2, p.o + row * a_.dv_pad_, a_.dv_pad_ * sizeof(float));
  }
}

void AttendRun::MergeSplits(const Cut& cut, int64_t stream) const {
  const Rows r = RowsOf(plan_.branches[0], cut, stream);
  PanelState p = RowSide(r, 0, 0);
  const int64_t width = a_.dv_pad_ + 2;
  for (int64_t row = 0; row < r.count(); ++row) {
    float m = -HUGE_VALF;
    float l = 0;
    for (int64_t s = 0; s < splits_; ++s) m = std::max(m, SplitState(cut, stream, s)[row * width]);
    float* o = p.o + row * a_.dv_pad_;
    std::fill(o, o + a_.dv_pad_, 0.0f);
    for (int64_t s = 0; s < splits_; ++s) {
      const float* from = SplitState(cut, stream, s) + row * width;
      if (from[1] == 0) continue;
      const float weight = from[0] == m ? 1.0f : std::exp2(from[0] - m);
      l += weight * from[1];
      for (int64_t x = 0; x < a_.dv_pad_; ++x) o[x] += weight * from[2 + x];
    }
    p.m[row] = m;
    p.l[row] = l;
  }
  Finish(r, p, 0);
}

void MergeAttention(absl::Span<const float* const> o, absl::Span<const float* const> lse,
                    int64_t rows, int64_t dv, float* out, float* out_lse) {
  for (int64_t r = 0; r < rows; ++r) {
    float m = -HUGE_VALF;
    float l = 0;
    for (const float* e : lse) m = std::max(m, e[r]);
    std::fill(out + r * dv, out + (r + 1) * dv, 0.0f);
    if (m == -HUGE_VALF) {
      out_lse[r] = m;
      continue;
    }
    for (const float* e : lse) l += std::exp(e[r] - m);
    for (size_t i = 0; i < o.size(); ++i) {
      const float weight = std::exp(lse[i][r] - m) / l;
      for (int64_t x = 0; x < dv; ++x) out[r * dv + x] += weight * o[i][r * dv + x];
    }
    out_lse[r] = m + std::log(l);
  }
}
SLUICE_END_NAMESPACE
