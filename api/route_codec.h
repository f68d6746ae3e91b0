#ifndef SLUICE_API_ROUTE_CODEC_H_
#define SLUICE_API_ROUTE_CODEC_H_
// The one place where assignment routers' C++ records become C records and back; the plug-in's side
// (plugin.h) and the host's (runtime/dynload) both use it, so that no C++ type crosses a .so.
#include <type_traits>

#include "absl/types/span.h"
#include "sluice/api/abi/sluice_abi.h"
#include "sluice/api/router.h"

SLUICE_BEGIN_NAMESPACE
namespace route_codec {
static_assert(sizeof(DroppedPair) == sizeof(sluice_dropped_pair) &&
              std::is_trivially_copyable_v<DroppedPair> &&
              offsetof(DroppedPair, unit) == offsetof(sluice_dropped_pair, unit));

inline sluice_matrix ToC(const MatrixView<const float>& m) {
  return {m.data, m.rows, m.cols, m.row_stride};
}
inline MatrixView<const float> FromC(const sluice_matrix& m) {
  return {m.data, m.rows, m.cols, m.row_stride};
}
template <class T>
absl::Span<T> FromC(T* data, size_t n) {
  return {data, data != nullptr ? n : 0};
}

inline sluice_route_shape ToC(const RouteShape& s) {
  sluice_route_shape c = {};
  c.struct_size = sizeof c;
  c.items = s.items;
  c.units = s.units;
  c.width = s.width;
  c.hidden = s.hidden;
  c.rows = s.rows;
  c.heads = s.heads;
  c.head_dim = s.head_dim;
  c.conditions = s.conditions;
  c.workers = s.workers;
  return c;
}
inline RouteShape FromC(const sluice_route_shape& c) {
  RouteShape s;
  s.items = c.items;
  s.units = c.units;
  s.width = c.width;
  s.hidden = c.hidden;
  s.rows = c.rows;
  s.heads = c.heads;
  s.head_dim = c.head_dim;
  s.conditions = c.conditions;
  s.workers = c.workers;
  return s;
}

inline constexpr size_t kInfoWithState = offsetof(sluice_route_info, state_bytes) + sizeof(size_t);
// A host that is older has no room for the state's size: FailedPrecondition where there is one.
inline absl::Status ToC(absl::string_view name, const RoutePlanInfo& p, sluice_route_info* c) {
  const bool knows_state = c->struct_size >= kInfoWithState;
  if (p.state_bytes > 0 && !knows_state)
    return absl::FailedPreconditionError(absl::StrCat(
        name, " remembers earlier steps, and this host knows no routers of items that do"));
  if (knows_state) c->state_bytes = p.state_bytes;
  c->workspace_bytes = p.workspace_bytes;
  c->unit_workspace_bytes = p.unit_workspace_bytes;
  c->units = p.shape.units;
  c->max_entries = p.max_entries;
  c->max_dropped = p.max_dropped;
  c->head_rows = p.head_rows;
  c->tail_rows = p.tail_rows;
  return absl::OkStatus();
}
inline RoutePlanInfo FromC(const RouteShape& asked, const sluice_route_info& c) {
  RoutePlanInfo p;
  p.shape = asked;
  p.shape.units = c.units;
  p.workspace_bytes = c.workspace_bytes;
  p.unit_workspace_bytes = c.unit_workspace_bytes;
  p.state_bytes = c.state_bytes;
  p.max_entries = c.max_entries;
  p.max_dropped = c.max_dropped;
  p.head_rows = c.head_rows;
  p.tail_rows = c.tail_rows;
  return p;
}

// Both ways run in every call: every field is named, so that nothing is cleared first.
inline sluice_route_inputs ToC(const RouteInputs& in) {
  const HeadsView<const float>& q = in.queries;
  return {.struct_size = sizeof(sluice_route_inputs),
          .items = in.items,
          .scores = ToC(in.scores),
          .features = ToC(in.features),
          .hidden = ToC(in.hidden),
          .queries = {.data = q.data,
                      .dtype = static_cast<int32_t>(q.dtype),
                      .reserved = 0,
                      .rows = q.rows,
                      .heads = q.heads,
                      .dim = q.dim,
                      .row_stride = q.row_stride,
                      .head_stride = q.head_stride},
          .feedback = in.feedback.data(),
          .num_feedback = in.feedback.size(),
          .positions = in.positions.data(),
          .num_positions = in.positions.size(),
          .item_rows = in.item_rows.data(),
          .num_item_rows = in.item_rows.size(),
          .lengths = in.lengths.data(),
          .num_lengths = in.lengths.size(),
          .conditions = in.conditions.data(),
          .num_conditions = in.conditions.size(),
          .unit_bias = in.unit_bias.data(),
          .num_unit_bias = in.unit_bias.size(),
          .layer = in.layer,
          .step = in.step,
          .task = in.task};
}
inline RouteInputs FromC(const sluice_route_inputs& c) {
  const sluice_view& q = c.queries;
  return {.items = c.items,
          .scores = FromC(c.scores),
          .features = FromC(c.features),
          .hidden = FromC(c.hidden),
          .queries = {static_cast<const float*>(q.data), q.rows, q.heads, q.dim, q.row_stride,
                      q.head_stride},
          .feedback = FromC(c.feedback, c.num_feedback),
          .positions = FromC(c.positions, c.num_positions),
          .item_rows = FromC(c.item_rows, c.num_item_rows),
          .lengths = FromC(c.lengths, c.num_lengths),
          .conditions = FromC(c.conditions, c.num_conditions),
          .unit_bias = FromC(c.unit_bias, c.num_unit_bias),
          .layer = c.layer,
          .step = c.step,
          .task = c.task};
}

// The storage of an assignment; what the router sets is copied back by Take.
inline sluice_assignment ToC(const Assignment& a) {
  const size_t both = std::min(a.unit.size(), a.weight.size());
  const size_t slots = a.score.empty() ? both : std::min(both, a.score.size());
  return {.struct_size = sizeof(sluice_assignment),
          .row_ptr = a.row_ptr.data(),
          .row_ptr_size = static_cast<int64_t>(a.row_ptr.size()),
          .unit = a.unit.data(),
          .weight = a.weight.data(),
          .score = a.score.empty() ? nullptr : a.score.data(),
          .entry_slots = static_cast<int64_t>(slots),
          .dropped = reinterpret_cast<sluice_dropped_pair*>(a.dropped.data()),
          .dropped_slots = static_cast<int64_t>(a.dropped.size()),
          .items = a.items,
          .units = a.units,
          .num_dropped = 0,
          .nan_scores = 0};
}
inline Assignment FromC(const sluice_assignment& c) {
  const auto slots = static_cast<size_t>(c.entry_slots);
  auto* dropped = reinterpret_cast<DroppedPair*>(c.dropped);
  return {.row_ptr = FromC(c.row_ptr, static_cast<size_t>(c.row_ptr_size)),
          .unit = FromC(c.unit, slots),
          .weight = FromC(c.weight, slots),
          .score = FromC(c.score, slots),
          .dropped = FromC(dropped, static_cast<size_t>(c.dropped_slots))};
}
// What one side of the border wrote, as the other side's record has it.
inline void Take(const Assignment& from, sluice_assignment* to) {
  to->items = from.items;
  to->units = from.units;
  to->num_dropped = from.num_dropped;
  to->nan_scores = from.nan_scores;
}
// The host's: what a plug-in wrote for so many items and units, and all that must hold of it before
// anything reads it. Allocation-free when it succeeds; O(entries).
inline absl::Status TakeChecked(const RouteTraits& t, int64_t items, int64_t units,
                                const sluice_assignment& from, Assignment* to) {
  if (from.items != items || from.units != units || from.nan_scores < 0)
    return absl::InternalError(absl::StrCat(t.name, ": the plug-in assigned ", from.items,
                                            " items to ", from.units, " units, asked were ", items,
                                            " and ", units, ", and counted ", from.nan_scores,
                                            " scores that are no numbers"));
  // What was compared, not what was read: a load of both numbers at once would have to wait for the
  // plug-in's two stores, which is a fifth of a small call.
  to->items = items;
  to->units = units;
  to->num_dropped = from.num_dropped;
  to->nan_scores = from.nan_scores;
  return ValidateAssignment(*to);
}

// Texts of traits live as long as the table that they are in. Traits are constexpr: their texts are
// literals, and literals are terminated.
inline const char* ToC(absl::string_view s) { return s.data() != nullptr ? s.data() : ""; }
inline absl::string_view FromC(const char* s) { return s != nullptr ? s : ""; }

inline sluice_route_traits ToC(const RouteTraits& t) {
  sluice_route_traits c = {};
  c.struct_size = sizeof c;
  c.name = ToC(t.name);
  c.title = ToC(t.title);
  c.arxiv = ToC(t.arxiv);
  c.full_budget = ToC(t.full_budget);
  c.small_budget = ToC(t.small_budget);
  c.domain = static_cast<uint32_t>(t.domain);
  c.combine = static_cast<uint32_t>(t.combine);
  c.decides = static_cast<uint32_t>(t.decides);
  const auto flag = [](bool set, int bit) { return set ? static_cast<uint32_t>(bit) : 0u; };
  c.flags = flag(t.learned, SLUICE_ROUTE_LEARNED) | flag(t.causal, SLUICE_ROUTE_CAUSAL) |
            flag(t.items_alone, SLUICE_ROUTE_ITEMS_ALONE);
  c.reads = t.reads;
  c.may_read = t.may_read;
  return c;
}
inline RouteTraits FromC(const sluice_route_traits& c) {
  RouteTraits t;
  t.name = FromC(c.name);
  t.title = FromC(c.title);
  t.arxiv = FromC(c.arxiv);
  t.full_budget = FromC(c.full_budget);
  t.small_budget = FromC(c.small_budget);
  t.domain = static_cast<Domain>(c.domain);
  t.combine = static_cast<Combine>(c.combine);
  t.decides = static_cast<Decides>(c.decides);
  t.learned = (c.flags & SLUICE_ROUTE_LEARNED) != 0;
  t.causal = (c.flags & SLUICE_ROUTE_CAUSAL) != 0;
  t.items_alone = (c.flags & SLUICE_ROUTE_ITEMS_ALONE) != 0;
  t.reads = c.reads;
  t.may_read = c.may_read;
  return t;
}

inline void ToC(const UnitInfo& u, sluice_unit* c) {
  c->kind = static_cast<uint32_t>(u.kind);
  c->concurrency = static_cast<uint32_t>(u.concurrency);
  c->cost = u.cost;
  c->max_rows = u.max_rows;
}
// Numbers that this side does not know make it a plain unit of the host's.
inline UnitInfo FromC(const sluice_unit& c) {
  UnitInfo u;
  if (c.kind > 2 || c.concurrency > 2 || c.max_rows < 0) return u;
  u.kind = static_cast<UnitKind>(c.kind);
  u.concurrency = static_cast<Concurrency>(c.concurrency);
  u.cost = c.cost;
  u.max_rows = c.max_rows;
  return u;
}

inline sluice_unit_rows ToC(const UnitRows& r) {
  sluice_unit_rows c = {};
  c.struct_size = sizeof c;
  c.unit = r.unit;
  c.in = ToC(r.in);
  c.items = r.items.empty() ? nullptr : r.items.data();
  c.out = r.out.data;
  c.out_cols = r.out.cols;
  return c;
}
inline UnitRows FromC(const sluice_unit_rows& c) {
  UnitRows r;
  r.unit = c.unit;
  r.in = FromC(c.in);
  r.items = FromC(c.items, static_cast<size_t>(c.in.rows));
  r.out = {c.out, c.in.rows, c.out_cols, c.out_cols};
  return r;
}
}  // namespace route_codec
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_ROUTE_CODEC_H_
