#include "sluice/runtime/attend/attend.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/attend/panel_cursor.h"
#include "sluice/runtime/kernels/attention_panel/attention_panel.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using kernels::kPanelKeys;
constexpr int64_t kMaxSplits = 64;
constexpr int64_t kGatherBelow =
    24;  // a group's panel with fewer wanted keys is gathered instead of read whole

int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("attend: ", what));
}
}  // namespace

absl::StatusOr<Attend> Attend::Create(const AttendShape& s, const AttendOptions& options) {
  if (s.max_queries <= 0 || s.max_kv <= 0 || s.heads <= 0 || s.kv_heads <= 0 ||
      s.heads % s.kv_heads != 0 || s.head_dim <= 0 || s.value_dim <= 0 || s.max_tile <= 0 ||
      s.workers <= 0 || s.max_branches <= 0) {
    return Bad(absl::StrCat("queries ", s.max_queries, ", keys ", s.max_kv, ", heads ", s.heads,
                            "/", s.kv_heads, ", widths ", s.head_dim, "/", s.value_dim, ", tile ",
                            s.max_tile, ", branches ", s.max_branches, ", workers ", s.workers,
                            "; all must be positive and heads a multiple of KV heads"));
  }
  if (options.split_keys < 0 || options.split_keys % static_cast<int64_t>(kPanelKeys) != 0) {
    return Bad(
        absl::StrCat("split_keys is ", options.split_keys, ", must be a multiple of ", kPanelKeys));
  }
  Attend a;
  a.shape_ = s;
  a.options_ = options;
  const int64_t g = s.heads / s.kv_heads;
  a.rows_ = g * s.max_tile;
  a.dv_pad_ = RoundUp(s.value_dim, static_cast<int64_t>(kernels::kValuePad));
  a.words_ = (s.max_kv + 63) / 64;
  a.max_items_ = s.heads * s.max_queries;
  a.max_splits_ = options.split_keys > 0
                      ? std::clamp<int64_t>(
                            (s.max_kv + options.split_keys - 1) / options.split_keys, 1, kMaxSplits)
                      : 1;
  const kernels::AmxAttention* amx = options.amx ? kernels::GetAmxAttention() : nullptr;
  a.amx_ = amx != nullptr;

  WorkspaceLayout& w = a.layout_;
  a.at_.order = w.Add<uint32_t>(a.max_items_);
  a.at_.cost = w.Add<int64_t>(a.max_items_);
  // One query: every (KV head or head, split) keeps {m, l, o} for its rows.
  a.at_.split = w.Add<float>(s.heads * a.max_splits_ * (a.dv_pad_ + 2));
  WorkspaceLayout p;
  Offsets& o = a.at_;
  const size_t rows = static_cast<size_t>(a.rows_), d = static_cast<size_t>(s.head_dim),
               dv = static_cast<size_t>(a.dv_pad_);
  o.q = p.Add<float>(a.rows_ * s.head_dim);
  o.o = p.Add<float>(a.rows_ * a.dv_pad_ * s.max_branches);
  o.m = p.Add<float>(a.rows_ * s.max_branches);
  o.l = p.Add<float>(a.rows_ * s.max_branches);
  o.kt = p.Add<float>(s.head_dim * static_cast<int64_t>(kPanelKeys));
  o.v = p.Add<float>(a.dv_pad_ * static_cast<int64_t>(kPanelKeys));
  o.mask = p.Add<uint64_t>(a.rows_);
  o.scratch = p.Add<float>(static_cast<int64_t>(std::max(
      kernels::AttentionScratchFloats(rows), amx != nullptr ? amx->scratch_floats(rows, dv) : 0)));
  o.bits = p.Add<uint64_t>(s.max_tile * a.words_);
  o.prob = p.Add<float>(options.probabilities ? a.rows_ * static_cast<int64_t>(kPanelKeys) : 0);
  if (amx != nullptr) {
    o.aq = p.Add<uint16_t>(static_cast<int64_t>(amx->packed_queries(rows, d)));
    o.ak = p.Add<uint16_t>(static_cast<int64_t>(amx->packed_keys(d)));
    o.av = p.Add<uint16_t>(static_cast<int64_t>(amx->packed_values(dv)));
  }
  o.counters = p.Add<AttentionCounters>(1);
  o.worker_stride = p.bytes();
  o.worker = w.Add<std::byte>(static_cast<int64_t>(o.worker_stride) * s.workers);
  return a;
}

// One Run: everything the bodies share, so that they stay small.
class AttendRun {
 public:
  AttendRun(const Attend& a, const AttentionPlan& plan, const AttendInputs& in,
            const RunContext& ctx, const AttendOutputs& out)
      : a_(a), plan_(plan), in_(in), ws_(ctx.workspace), ex_(*ctx.executor), out_(out) {
    g_ = plan.heads / plan.kv_heads;
    amx_ = a.amx_ && in.k.dtype == DType::kBF16 && in.v.dtype == DType::kBF16
               ? kernels::GetAmxAttention()
               : nullptr;
    grouped_ = Groupable();
    per_query_head_ = plan.scope == ListScope::kQueryHead;
    streams_ = per_query_head_ ? plan.heads : plan.kv_heads;
    item_rows_heads_ = per_query_head_ ? 1 : g_;
    tiles_per_item_ = 1;
    if (grouped_) {
      const int64_t want = a.options_.mode == AttendMode::kKvMajor
                               ? a.shape_.max_tile
                               : std::min(a.options_.token_group, a.shape_.max_tile);
      tiles_per_item_ = std::max<int64_t>(1, want / plan.tile);
    }
    items_per_stream_ = (plan.num_tiles() + tiles_per_item_ - 1) / tiles_per_item_;
    splits_ = plan.q_count == 1 && plan.merge == Merge::kLse && out.probabilities.empty() &&
                      out.resume.empty() && !HasStop()
                  ? a.max_splits_
                  : 1;
  }

  absl::Status Check() const {
    const AttendShape& s = a_.shape_;
    const AttentionPlan& p = plan_;
    if (p.heads != s.heads || p.kv_heads != s.kv_heads || p.q_count > s.max_queries ||
        p.kv_len > s.max_kv || p.tile > s.max_tile) {
      return Bad(absl::StrCat("the plan has ", p.heads, "/", p.kv_heads, " heads, ", p.q_count,
                              " queries, ", p.kv_len, " keys, tile ", p.tile, "; made for ",
                              s.heads, "/", s.kv_heads, ", at most ", s.max_queries, ", ", s.max_kv,
                              ", ", s.max_tile));
    }
    if (in_.q.rows != p.q_count || in_.q.heads != s.heads || in_.q.dim != s.head_dim) {
      return Bad(absl::StrCat("q is [", in_.q.rows, ", ", in_.q.heads, ", ", in_.q.dim,
                              "], wanted [", p.q_count, ", ", s.heads, ", ", s.head_dim, "]"));
    }
    if (in_.k.rows < p.kv_len || in_.k.heads != s.kv_heads || in_.k.dim != s.head_dim ||
        in_.v.rows < p.kv_len || in_.v.heads != s.kv_heads || in_.v.dim != s.value_dim) {
      return Bad(absl::StrCat("k is [", in_.k.rows, ", ", in_.k.heads, ", ", in_.k.dim, "] and v [",
                              in_.v.rows, ", ", in_.v.heads, ", ", in_.v.dim, "], wanted at least ",
                              p.kv_len, " rows, ", s.kv_heads, " heads, widths ", s.head_dim,
                              " and ", s.value_dim));
    }
    if (in_.k.dtype == DType::kI8 || in_.v.dtype == DType::kI8)
      return Bad("int8 keys are for selection only; attend needs f32, bf16 or f16");
    if (out_.o.rows != p.q_count || out_.o.heads != s.heads || out_.o.dim != s.value_dim)
      return Bad("o has the wrong shape");
    if (ws_.bytes < a_.workspace_bytes())
      return Bad(absl::StrCat("workspace of ", ws_.bytes, " bytes, needs ", a_.workspace_bytes()));
    if (ex_.num_workers() > s.workers)
      return Bad(
          absl::StrCat("the executor has ", ex_.num_workers(), " workers, made for ", s.workers));
    if (p.branches.empty()) return Bad("the plan has no branches");
    if (p.merge == Merge::kWeightedSum &&
        (static_cast<int>(p.branches.size()) > s.max_branches || out_.lse != nullptr ||
         !out_.state.empty() || !out_.probabilities.empty())) {
      return Bad(absl::StrCat("a weighted sum of ", p.branches.size(), " branches; made for ",
                              s.max_branches, ", and it has no lse, state or probabilities"));
    }
    if (!out_.probabilities.empty() &&
        (!a_.options_.probabilities || out_.probabilities.rows < p.heads * p.q_count ||
         out_.probabilities.cols < p.kv_len)) {
      return Bad("probabilities need AttendOptions::probabilities and [heads * queries, keys]");
    }
    if (a_.options_.mode == AttendMode::kKvMajor && !grouped_ && p.q_count > 1) {
      return absl::UnimplementedError(
          "attend: KV-major runs plans with one branch of exact entries, ascending, without bias, "
          "row masks, "
          "permutation or stop rule");
    }
    for (const AttentionBranch& b : p.branches) {
      for (size_t r = 0; r < b.rows.begin.size() && b.encoding != Encoding::kTokens &&
                         b.encoding != Encoding::kRankedPrefix;
           ++r) {
        for (uint32_t e = 0; e < b.rows.count[r]; ++e) {
          const PlanEntry& x = b.entries[b.rows.begin[r] + e];
          if (x.state == EntryState::kApprox && (x.level == 0 || x.level > in_.tables.size())) {
            return Bad(absl::StrCat("an entry names summary table ", static_cast<int>(x.level),
                                    " of ", in_.tables.size()));
          }
        }
      }
    }
    return absl::OkStatus();
  }

  void Execute() {
    const int64_t items = streams_ * items_per_stream_ * splits_;
    for (int w = 0; w < ex_.num_workers(); ++w)
      *Worker<AttentionCounters>(w, a_.at_.counters) = AttentionCounters{};
    uint32_t* order = ws_.At<uint32_t>(a_.at_.order);
    int64_t* cost = ws_.At<int64_t>(a_.at_.cost);
    if (splits_ == 1) {
      for (int64_t i = 0; i < items; ++i) {
        order[i] = static_cast<uint32_t>(i);
        cost[i] = Cost(i);
      }
      std::sort(order, order + items, [cost](uint32_t x, uint32_t y) {
        return cost[x] != cost[y] ? cost[x] > cost[y] : x < y;
      });
      ex_.ParallelFor(items, 1, [&](int64_t b, int64_t e, int w) {
        for (int64_t i = b; i < e; ++i) Item(order[i], w);
      });
    } else {
      ex_.ParallelFor(items, 1, [&](int64_t b, int64_t e, int w) {
        for (int64_t i = b; i < e; ++i) Split(i / splits_, i % splits_, w);
      });
      for (int64_t stream = 0; stream < streams_; ++stream) MergeSplits(stream);
    }
    if (out_.counters != nullptr) {
      for (int w = 0; w < ex_.num_workers(); ++w)
        out_.counters->Add(*Worker<AttentionCounters>(w, a_.at_.counters));
      for (int64_t i = 0; i < plan_.q_count; ++i)
        out_.counters->causal_pairs += plan_.heads * std::min(plan_.kv_len, plan_.position(i) + 1);
    }
  }

 private:
  // The rows that one item works on: `heads` query heads from `head0`, queries [q0, q0 + n). Row
  // (h, i) is h * n + i.
  struct Rows {
    int64_t kv = 0, head0 = 0, heads = 0, q0 = 0, n = 0;
    int64_t count() const { return heads * n; }
  };

  template <class T>
  T* Worker(int w, size_t at) const {
    return ws_.At<T>(a_.at_.worker + static_cast<size_t>(w) * a_.at_.worker_stride + at);
  }
  bool HasStop() const {
    for (const AttentionBranch& b : plan_.branches) {
      if (b.stop != StopRule::kNone) return true;
    }
    return false;
  }
  bool Groupable() const {
    if (plan_.branches.size() != 1 || plan_.merge != Merge::kLse || plan_.q_count <= 1 ||
        !out_.probabilities.empty())
      return false;
    const AttentionBranch& b = plan_.branches[0];
    const bool tokens = b.encoding == Encoding::kTokens && plan_.tile == 1;
    if (a_.options_.mode != AttendMode::kKvMajor && !(tokens && a_.options_.token_group > 1))
      return false;
    if (b.encoding == Encoding::kRankedPrefix || !b.entry_bias.empty() || !b.row_mask.empty() ||
        !plan_.kperm.empty() || !plan_.key_bias.empty() || b.stop != StopRule::kNone)
      return false;
    if (b.encoding == Encoding::kTokens)
      return b.token_mask != MaskClass::kNone && b.token_mask != MaskClass::kLowerBound;
    for (size_t r = 0; r < b.rows.begin.size(); ++r) {
      for (uint32_t e = 0; e < b.rows.count[r]; ++e) {
        const PlanEntry& x = b.entries[b.rows.begin[r] + e];
        if (x.state != EntryState::kExact || x.mask == MaskClass::kPermCausal ||
            x.mask == MaskClass::kNone)
          return false;
        if (x.mask == MaskClass::kLowerBound && plan_.tile != 1) return false;
      }
    }
    return true;
  }
  int64_t ListOf(int64_t stream) const { return plan_.scope == ListScope::kAllHeads ? 0 : stream; }
  int64_t PlanRow(int64_t stream, int64_t tile) const {
    return ListOf(stream) * plan_.num_tiles() + tile;
  }
  Rows RowsOf(int64_t stream, int64_t tile0, int64_t tiles) const {
    Rows r;
    r.kv = per_query_head_ ? stream / g_ : stream;
    r.head0 = per_query_head_ ? stream : stream * g_;
    r.heads = item_rows_heads_;
    r.q0 = tile0 * plan_.tile;
    r.n = std::min(plan_.q_count, (tile0 + tiles) * plan_.tile) - r.q0;
    return r;
  }
  int64_t Cost(int64_t item) const {
    const int64_t stream = item / items_per_stream_,
                  first = item % items_per_stream_ * tiles_per_item_;
    const int64_t last = std::min(plan_.num_tiles(), first + tiles_per_item_);
    int64_t keys = 0;
    for (const AttentionBranch& b : plan_.branches) {
      for (int64_t t = first; t < last; ++t) {
        const size_t r = static_cast<size_t>(PlanRow(stream, t));
        if (b.encoding == Encoding::kTokens || b.encoding == Encoding::kRankedPrefix) {
          keys += b.rows.count[r] * (b.encoding == Encoding::kTokens ? 1 : b.unit);
          continue;
        }
        for (uint32_t e = 0; e < b.rows.count[r]; ++e)
          keys +=
              b.entries[b.rows.begin[r] + e].len * (b.encoding == Encoding::kBlocks ? b.unit : 1);
      }
    }
    return keys * plan_.tile;
  }

  void PackQueries(const Rows& r, int w) const {
    float* q = Worker<float>(w, a_.at_.q);
    const float scale = in_.scale * kernels::kLog2E;
    for (int64_t h = 0; h < r.heads; ++h) {
      for (int64_t i = 0; i < r.n; ++i) {
        const float* from = in_.q.at(r.q0 + i, r.head0 + h);
        float* to = q + (h * r.n + i) * in_.q.dim;
        for (int64_t x = 0; x < in_.q.dim; ++x) to[x] = from[x] * scale;
      }
    }
    if (amx_ != nullptr) {
      amx_->pack_queries(q, r.count(), in_.q.dim, Worker<uint16_t>(w, a_.at_.aq));
    }
  }
  kernels::AttentionPanel RowSide(const Rows& r, int w, int64_t branch) const {
    kernels::AttentionPanel p;
    p.q = Worker<float>(w, a_.at_.q);
    p.rows = static_cast<size_t>(r.count());
    p.d = static_cast<size_t>(in_.q.dim);
    p.dv = static_cast<size_t>(a_.dv_pad_);
    p.m = Worker<float>(w, a_.at_.m) + branch * a_.rows_;
    p.l = Worker<float>(w, a_.at_.l) + branch * a_.rows_;
    p.o = Worker<float>(w, a_.at_.o) + branch * a_.rows_ * a_.dv_pad_;
    p.scratch = Worker<float>(w, a_.at_.scratch);
    p.softcap = a_.options_.softcap;
    return p;
  }
  void Clear(const kernels::AttentionPanel& p) const {
    std::fill(p.m, p.m + p.rows, -HUGE_VALF);
    std::fill(p.l, p.l + p.rows, 0.0f);
    std::fill(p.o, p.o + p.rows * p.dv, 0.0f);
  }
  // Calls visit(head in item, query in item, state index) for a caller-held state.
  template <class Visit>
  void EachRow(const Rows& r, Visit&& visit) const {
    for (int64_t h = 0; h < r.heads; ++h) {
      for (int64_t i = 0; i < r.n; ++i)
        visit(h * r.n + i, (r.q0 + i) * plan_.heads + r.head0 + h, r.q0 + i, r.head0 + h);
    }
  }
  void Resume(const Rows& r, const kernels::AttentionPanel& p) const {
    Clear(p);
    if (out_.resume.empty()) return;
    const int64_t dv = a_.shape_.value_dim;
    EachRow(r, [&](int64_t row, int64_t at, int64_t, int64_t) {
      p.m[row] = out_.resume.m[at];
      p.l[row] = out_.resume.l[at];
      std::memcpy(p.o + row * a_.dv_pad_, out_.resume.o + at * dv,
                  static_cast<size_t>(dv) * sizeof(float));
    });
  }
  void Finish(const Rows& r, const kernels::AttentionPanel& p) const {
    const int64_t dv = a_.shape_.value_dim;
    EachRow(r, [&](int64_t row, int64_t at, int64_t query, int64_t head) {
      const float l = p.l[row], inv = l > 0 ? 1.0f / l : 0.0f;
      const float* from = p.o + row * a_.dv_pad_;
      float* to = out_.o.at(query, head);
      for (int64_t x = 0; x < dv; ++x) to[x] = l > 0 ? from[x] * inv : 0.0f;
      if (out_.lse != nullptr)
        out_.lse[at] = l > 0 ? (p.m[row] + std::log2(l)) * kernels::kLn2 : -HUGE_VALF;
      if (!out_.state.empty()) {
        out_.state.m[at] = p.m[row];
        out_.state.l[at] = l;
        std::memcpy(out_.state.o + at * dv, from, static_cast<size_t>(dv) * sizeof(float));
      }
    });
  }

  // Packs the key side of one panel and folds it into the rows.
  float Fold(kernels::AttentionPanel& p, const KvView& k, const KvView& v, int64_t kv,
             const uint32_t* ids, int64_t start, int64_t n, const uint64_t* mask, const float* bias,
             int w) const {
    const kernels::PanelSource ks{k.at(ids != nullptr ? 0 : start, kv), k.dtype, k.row_bytes(),
                                  ids};
    const kernels::PanelSource vs{v.at(ids != nullptr ? 0 : start, kv), v.dtype, v.row_bytes(),
                                  ids};
    p.n = static_cast<size_t>(n);
    p.mask = mask;
    p.bias = bias;
    if (amx_ != nullptr && k.dtype == DType::kBF16 && v.dtype == DType::kBF16) {
      uint16_t* ak = Worker<uint16_t>(w, a_.at_.ak);
      uint16_t* av = Worker<uint16_t>(w, a_.at_.av);
      amx_->pack_keys(ks, p.n, p.d, ak);
      amx_->pack_values(vs, p.n, v.dim, av);
      return amx_->attend(p, Worker<uint16_t>(w, a_.at_.aq), ak, av);
    }
    PackFp32(p, ks, vs, v.dim, w);
    return kernels::AttendPanel(p);
  }
  void PackFp32(kernels::AttentionPanel& p, const kernels::PanelSource& ks,
                const kernels::PanelSource& vs, int64_t dv, int w) const {
    float* kt = Worker<float>(w, a_.at_.kt);
    kernels::PackKeyPanel(ks, p.n, p.d, kt);
    p.kt = kt;
    if (vs.dtype == DType::kF32 && vs.ids == nullptr && dv == a_.dv_pad_) {
      p.v = static_cast<const float*>(vs.base);
      p.v_stride = vs.row_bytes / sizeof(float);
    } else {
      float* packed = Worker<float>(w, a_.at_.v);
      kernels::PackValuePanel(vs, p.n, dv, p.dv, packed);
      p.v = packed;
      p.v_stride = p.dv;
    }
  }
  void Count(const kernels::AttentionPanel& p, bool approx, const KvView& k, const KvView& v,
             int w) const {
    AttentionCounters& c = *Worker<AttentionCounters>(w, a_.at_.counters);
    const int64_t rows = static_cast<int64_t>(p.rows), n = static_cast<int64_t>(p.n);
    int64_t pairs = rows * n;
    if (p.mask != nullptr) {
      pairs = 0;
      for (int64_t r = 0; r < p.rows; ++r) pairs += std::popcount(p.mask[r]);
    }
    (approx ? c.approx_pairs : c.exact_pairs) += pairs;
    c.computed_pairs += rows * n;
    c.macs += rows * n * (k.dim + v.dim);
    c.kv_bytes += n * static_cast<int64_t>(static_cast<size_t>(k.dim) * DTypeBytes(k.dtype) +
                                           static_cast<size_t>(v.dim) * DTypeBytes(v.dtype));
  }

  // Asks for the keys and values of a panel ahead of its use.
  void Prefetch(const attend_internal::Panel& p, int64_t kv) const {
    constexpr size_t kLine = 64;
    for (int64_t j = 0; j < p.n; ++j) {
      const int64_t key = p.ids != nullptr ? p.ids[j] : p.start + j;
      for (const KvView* view : {&in_.k, &in_.v}) {
        const std::byte* at = view->at(key, kv);
        for (size_t b = 0; b < static_cast<size_t>(view->dim) * DTypeBytes(view->dtype); b += kLine)
          __builtin_prefetch(at + b);
      }
    }
  }
  // Walks one branch of one tile. [first_panel, last_panel): the share of the list a split owns.
  void Walk(const Rows& r, const AttentionBranch& b, int64_t tile, int64_t stream,
            kernels::AttentionPanel& p, int w, int64_t first_panel, int64_t last_panel,
            bool probabilities = false) const {
    attend_internal::PanelCursor cursor(plan_, b, in_.tables, PlanRow(stream, tile), r.kv, r.q0,
                                        r.n);
    uint64_t* masks = Worker<uint64_t>(w, a_.at_.mask);
    attend_internal::Panel
        panels[2];  // one ahead, so that its keys can be fetched while this one is worked on
    bool more = cursor.Next(panels[0]);
    for (int64_t index = 0; more; ++index) {
      const attend_internal::Panel& panel = panels[index & 1];
      const attend_internal::Panel& next = panels[(index + 1) & 1];
      more = cursor.Next(panels[(index + 1) & 1]);
      if (index < first_panel) continue;
      if (index >= last_panel) break;
      if (more && next.table == 0) Prefetch(next, r.kv);
      const KvView& k = panel.table > 0 ? in_.tables[panel.table - 1].k : in_.k;
      const KvView& v = panel.table > 0 ? in_.tables[panel.table - 1].v : in_.v;
      const uint64_t* mask = nullptr;
      if (!cursor.AllVisible(panel) || b.encoding == Encoding::kRankedPrefix) {
        for (int64_t i = 0; i < r.n; ++i) masks[i] = cursor.Visible(panel, i);
        for (int64_t h = r.heads - 1; h >= 0; --h) {
          const uint64_t keep = cursor.HeadSees(panel, r.head0 + h);
          for (int64_t i = 0; i < r.n; ++i) masks[h * r.n + i] = masks[i] & keep;
        }
        mask = masks;
      }
      if (probabilities) {
        p.n = static_cast<size_t>(panel.n);
        p.mask = mask;
        p.bias = panel.has_bias ? panel.bias : nullptr;
        const kernels::PanelSource ks{k.at(panel.ids != nullptr ? 0 : panel.start, r.kv), k.dtype,
                                      k.row_bytes(), panel.ids};
        kernels::PackKeyPanel(ks, p.n, p.d, Worker<float>(w, a_.at_.kt));
        p.kt = Worker<float>(w, a_.at_.kt);
        if (panel.table > 0) continue;  // summaries have no column of their own
        float* prob = Worker<float>(w, a_.at_.prob);
        kernels::PanelProbabilities(p, prob, kPanelKeys);
        EachRow(r, [&](int64_t row, int64_t, int64_t query, int64_t head) {
          float* to = out_.probabilities.row(head * plan_.q_count + query);
          for (int64_t j = 0; j < panel.n; ++j)
            to[panel.ids != nullptr ? panel.ids[j] : panel.start + j] =
                prob[row * static_cast<int64_t>(kPanelKeys) + j];
        });
        continue;
      }
      const float gain = Fold(p, k, v, r.kv, panel.ids, panel.start, panel.n, mask,
                              panel.has_bias ? panel.bias : nullptr, w);
      Count(p, panel.table > 0, k, v, w);
      if (b.stop == StopRule::kGain && gain < b.stop_tau) {
        AttentionCounters& c = *Worker<AttentionCounters>(w, a_.at_.counters);
        c.stopped_panels += more;
        while (more && cursor.Next(panels[0])) ++c.stopped_panels;
        break;
      }
    }
  }

  void Item(int64_t item, int w) const {
    const int64_t stream = item / items_per_stream_,
                  tile = item % items_per_stream_ * tiles_per_item_;
    const Rows r = RowsOf(stream, tile, tiles_per_item_);
    PackQueries(r, w);
    if (grouped_) return Group(r, stream, tile, w);
    constexpr int64_t kAll = int64_t{1} << 62;
    if (plan_.merge ==
        Merge::kLse) {  // branches are parts of one softmax: one state runs through them
      kernels::AttentionPanel p = RowSide(r, w, 0);
      Resume(r, p);
      for (const AttentionBranch& b : plan_.branches) Walk(r, b, tile, stream, p, w, 0, kAll);
      Finish(r, p);
      if (!out_.probabilities.empty()) {
        EachRow(r, [&](int64_t, int64_t, int64_t query, int64_t head) {
          float* to = out_.probabilities.row(head * plan_.q_count + query);
          std::fill(to, to + plan_.kv_len, 0.0f);
        });
        for (const AttentionBranch& b : plan_.branches)
          Walk(r, b, tile, stream, p, w, 0, kAll, true);
      }
      return;
    }
    const int64_t dv = a_.shape_.value_dim;
    for (size_t bi = 0; bi < plan_.branches.size(); ++bi) {
      const AttentionBranch& b = plan_.branches[bi];
      kernels::AttentionPanel p = RowSide(r, w, static_cast<int64_t>(bi));
      if (b.init_from >= 0) {
        const kernels::AttentionPanel from = RowSide(r, w, b.init_from);
        std::copy(from.m, from.m + p.rows, p.m);
        std::copy(from.l, from.l + p.rows, p.l);
        std::copy(from.o, from.o + p.rows * p.dv, p.o);
      } else {
        Resume(r, p);
      }
      Walk(r, b, tile, stream, p, w, 0, kAll);
    }
    EachRow(r, [&](int64_t row, int64_t at, int64_t query, int64_t head) {
      float* to = out_.o.at(query, head);
      std::fill(to, to + dv, 0.0f);
      for (size_t bi = 0; bi < plan_.branches.size(); ++bi) {
        const kernels::AttentionPanel p = RowSide(r, w, static_cast<int64_t>(bi));
        if (!(p.l[row] > 0)) continue;
        const float weight =
            plan_.branch_weight[bi * static_cast<size_t>(plan_.q_count * plan_.heads) +
                                static_cast<size_t>(at)] /
            p.l[row];
        for (int64_t x = 0; x < dv; ++x) to[x] += weight * p.o[row * a_.dv_pad_ + x];
      }
    });
  }

  // Several tiles at once: bit k of a tile's map says that it wants key k; each panel is loaded
  // once for all of them.
  void Group(const Rows& r, int64_t stream, int64_t tile0, int w) const {
    const AttentionBranch& b = plan_.branches[0];
    const int64_t tiles = std::min(plan_.num_tiles(), tile0 + tiles_per_item_) - tile0;
    const int64_t words = (plan_.kv_len + 63) / 64;
    uint64_t* bits = Worker<uint64_t>(w, a_.at_.bits);
    std::memset(bits, 0, static_cast<size_t>(tiles * words) * sizeof(uint64_t));
    for (int64_t t = 0; t < tiles; ++t) {
      uint64_t* own = bits + t * words;
      const size_t row = static_cast<size_t>(PlanRow(stream, tile0 + t));
      for (uint32_t e = 0; e < b.rows.count[row]; ++e) {
        if (b.encoding == Encoding::kTokens) {
          const uint32_t id = b.tokens[b.rows.begin[row] + e];
          own[id >> 6] |= uint64_t{1} << (id & 63);
          continue;
        }
        const PlanEntry& x = b.entries[b.rows.begin[row] + e];
        int64_t lo = 0, hi = 0;
        EntryKeys(b, x, plan_.kv_len, &lo, &hi);
        if (x.mask == MaskClass::kLowerBound)
          lo = std::max(lo, plan_.position((tile0 + t) * plan_.tile) - plan_.window + 1);
        for (int64_t at = lo; at < hi;) {
          const int64_t end = std::min(hi, (at | 63) + 1);
          const uint64_t ones = end - at == 64 ? ~uint64_t{0} : (uint64_t{1} << (end - at)) - 1;
          own[at >> 6] |= ones << (at & 63);
          at = end;
        }
      }
    }
    kernels::AttentionPanel p = RowSide(r, w, 0);
    Resume(r, p);
    uint64_t* masks = Worker<uint64_t>(w, a_.at_.mask);
    uint32_t ids[kPanelKeys];
    int64_t pending = 0;
    const auto tile_of = [&](int64_t i) { return i / plan_.tile; };
    const auto fold = [&](const uint32_t* gather, int64_t start, int64_t n) {
      for (int64_t i = 0; i < r.n; ++i) {
        const int64_t query = plan_.position(r.q0 + i);
        const uint64_t* own = bits + tile_of(i) * words;
        uint64_t m = 0;
        if (gather == nullptr) {
          m = own[start >> 6];
          const int64_t seen = query - start + 1;
          m = seen <= 0 ? 0 : seen >= 64 ? m : m & ((uint64_t{1} << seen) - 1);
        } else {
          for (int64_t j = 0; j < n; ++j) {
            m |= ((own[gather[j] >> 6] >> (gather[j] & 63)) &
                  static_cast<uint64_t>(static_cast<int64_t>(gather[j]) <= query))
                 << j;
          }
        }
        for (int64_t h = 0; h < r.heads; ++h) masks[h * r.n + i] = m;
      }
      Fold(p, in_.k, in_.v, r.kv, gather, start, n, masks, nullptr, w);
      Count(p, false, in_.k, in_.v, w);
    };
    for (int64_t word = 0; word < words; ++word) {
      uint64_t any = 0;
      for (int64_t t = 0; t < tiles; ++t) any |= bits[t * words + word];
      if (any == 0) continue;
      if (std::popcount(any) >= kGatherBelow) {
        fold(nullptr, word * 64, std::min<int64_t>(64, plan_.kv_len - word * 64));
        continue;
      }
      for (; any != 0; any &= any - 1) {
        ids[pending++] = static_cast<uint32_t>(word * 64 + std::countr_zero(any));
        if (pending == static_cast<int64_t>(kPanelKeys)) {
          fold(ids, 0, pending);
          pending = 0;
        }
      }
    }
    if (pending > 0) fold(ids, 0, pending);
    Finish(r, p);
  }

  float* SplitState(int64_t stream, int64_t split) const {
    return ws_.At<float>(a_.at_.split) +
           (stream * splits_ + split) * item_rows_heads_ * (a_.dv_pad_ + 2);
  }
  void Split(int64_t stream, int64_t split, int w) const {
    const Rows r = RowsOf(stream, 0, 1);
    PackQueries(r, w);
    kernels::AttentionPanel p = RowSide(r, w, 0);
    Clear(p);
    const int64_t per = a_.options_.split_keys / static_cast<int64_t>(kPanelKeys);
    const int64_t last = split + 1 == splits_ ? int64_t{1} << 62 : (split + 1) * per;
    int64_t offset = 0;  // panels are numbered through all branches
    for (const AttentionBranch& b : plan_.branches) {
      Walk(r, b, 0, stream, p, w, split * per - offset, last - offset);
      if (plan_.branches.size() > 1) {
        attend_internal::PanelCursor cursor(plan_, b, in_.tables, PlanRow(stream, 0), r.kv, 0, 1);
        attend_internal::Panel panel;
        while (cursor.Next(panel)) ++offset;
      }
    }
    float* s = SplitState(stream, split);
    for (int64_t row = 0; row < r.count(); ++row) {
      float* to = s + row * (a_.dv_pad_ + 2);
      to[0] = p.m[row];
      to[1] = p.l[row];
      std::memcpy(to + 2, p.o + row * a_.dv_pad_, static_cast<size_t>(a_.dv_pad_) * sizeof(float));
    }
  }
  void MergeSplits(int64_t stream) const {
    const Rows r = RowsOf(stream, 0, 1);
    kernels::AttentionPanel p = RowSide(r, 0, 0);
    for (int64_t row = 0; row < r.count(); ++row) {
      float m = -HUGE_VALF, l = 0;
      for (int64_t s = 0; s < splits_; ++s)
        m = std::max(m, SplitState(stream, s)[row * (a_.dv_pad_ + 2)]);
      float* o = p.o + row * a_.dv_pad_;
      std::fill(o, o + a_.dv_pad_, 0.0f);
      for (int64_t s = 0; s < splits_; ++s) {
        const float* from = SplitState(stream, s) + row * (a_.dv_pad_ + 2);
        if (!(from[1] > 0)) continue;
        const float weight = from[0] == m ? 1.0f : std::exp2(from[0] - m);
        l += weight * from[1];
        for (int64_t x = 0; x < a_.dv_pad_; ++x) o[x] += weight * from[2 + x];
      }
      p.m[row] = m;
      p.l[row] = l;
    }
    Finish(r, p);
  }

  const Attend& a_;
  const AttentionPlan& plan_;
  const AttendInputs& in_;
  Workspace ws_;
  Executor& ex_;
  const AttendOutputs& out_;
  const kernels::AmxAttention* amx_ = nullptr;
  bool grouped_ = false, per_query_head_ = false;
  int64_t g_ = 1, streams_ = 0, item_rows_heads_ = 1, tiles_per_item_ = 1, items_per_stream_ = 0,
          splits_ = 1;
};

absl::Status Attend::Run(const AttentionPlan& plan, const AttendInputs& in, const RunContext& ctx,
                         const AttendOutputs& out) const {
  if (ctx.executor == nullptr) return Bad("no executor");
  if (plan.q_count == 0) return absl::OkStatus();
  if (plan.tile <= 0 || plan.heads <= 0 || plan.kv_heads <= 0) return Bad("the plan has no shape");
  AttendRun run(*this, plan, in, ctx, out);
  if (absl::Status s = run.Check(); !s.ok()) return s;
  run.Execute();
  return absl::OkStatus();
}

void MergeAttention(absl::Span<const float* const> o, absl::Span<const float* const> lse,
                    int64_t rows, int64_t dv, float* out, float* out_lse) {
  for (int64_t r = 0; r < rows; ++r) {
    float m = -HUGE_VALF, l = 0;
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
