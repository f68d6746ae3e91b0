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

inline void ToC(const RoutePlanInfo& p, sluice_route_info* c) {
  c->workspace_bytes = p.workspace_bytes;
  c->unit_workspace_bytes = p.unit_workspace_bytes;
  c->units = p.shape.units;
  c->max_entries = p.max_entries;
  c->max_dropped = p.max_dropped;
  c->head_rows = p.head_rows;
  c->tail_rows = p.tail_rows;
}
inline RoutePlanInfo FromC(const RouteShape& asked, const sluice_route_info& c) {
  RoutePlanInfo p;
  p.shape = asked;
  p.shape.units = c.units;
  p.workspace_bytes = c.workspace_bytes;
  p.unit_workspace_bytes = c.unit_workspace_bytes;
  p.max_entries = c.max_entries;
  p.max_dropped = c.max_dropped;
  p.head_rows = c.head_rows;
  p.tail_rows = c.tail_rows;
  return p;
}

inline sluice_route_inputs ToC(const RouteInputs& in) {
  sluice_route_inputs c = {};
  c.struct_size = sizeof c;
  c.items = in.items;
  c.scores = ToC(in.scores);
  c.features = ToC(in.features);
  c.hidden = ToC(in.hidden);
  const HeadsView<const float>& q = in.queries;
  c.queries = {q.data,       static_cast<int32_t>(q.dtype), 0, q.rows, q.heads, q.dim, q.row_stride,
               q.head_stride};
  c.feedback = in.feedback.data();
  c.num_feedback = in.feedback.size();
  c.positions = in.positions.data();
  c.num_positions = in.positions.size();
  c.item_rows = in.item_rows.data();
  c.num_item_rows = in.item_rows.size();
  c.lengths = in.lengths.data();
  c.num_lengths = in.lengths.size();
  c.conditions = in.conditions.data();
  c.num_conditions = in.conditions.size();
  c.unit_bias = in.unit_bias.data();
  c.num_unit_bias = in.unit_bias.size();
  c.layer = in.layer;
  c.step = in.step;
  c.task = in.task;
  return c;
}
inline RouteInputs FromC(const sluice_route_inputs& c) {
  RouteInputs in;
  in.items = c.items;
  in.scores = FromC(c.scores);
  in.features = FromC(c.features);
  in.hidden = FromC(c.hidden);
  const sluice_view& q = c.queries;
  in.queries = {
      static_cast<const float*>(q.data), q.rows, q.heads, q.dim, q.row_stride, q.head_stride};
  in.feedback = FromC(c.feedback, c.num_feedback);
  in.positions = FromC(c.positions, c.num_positions);
  in.item_rows = FromC(c.item_rows, c.num_item_rows);
  in.lengths = FromC(c.lengths, c.num_lengths);
  in.conditions = FromC(c.conditions, c.num_conditions);
  in.unit_bias = FromC(c.unit_bias, c.num_unit_bias);
  in.layer = c.layer;
  in.step = c.step;
  in.task = c.task;
  return in;
}

// The storage of an assignment; what the router sets is copied back by Take.
inline sluice_assignment ToC(const Assignment& a) {
  sluice_assignment c = {};
  c.struct_size = sizeof c;
  c.row_ptr = a.row_ptr.data();
  c.row_ptr_size = static_cast<int64_t>(a.row_ptr.size());
  c.unit = a.unit.data();
  c.weight = a.weight.data();
  c.score = a.score.empty() ? nullptr : a.score.data();
  c.entry_slots = static_cast<int64_t>(std::min(a.unit.size(), a.weight.size()));
  if (c.score != nullptr)
    c.entry_slots = std::min(c.entry_slots, static_cast<int64_t>(a.score.size()));
  c.dropped = reinterpret_cast<sluice_dropped_pair*>(a.dropped.data());
  c.dropped_slots = static_cast<int64_t>(a.dropped.size());
  c.items = a.items;
  c.units = a.units;
  return c;
}
inline Assignment FromC(const sluice_assignment& c) {
  Assignment a;
  const auto slots = static_cast<size_t>(c.entry_slots);
  a.row_ptr = FromC(c.row_ptr, static_cast<size_t>(c.row_ptr_size));
  a.unit = FromC(c.unit, slots);
  a.weight = FromC(c.weight, slots);
  a.score = FromC(c.score, slots);
  a.dropped =
      FromC(reinterpret_cast<DroppedPair*>(c.dropped), static_cast<size_t>(c.dropped_slots));
  return a;
}
// What one side of the border wrote, as the other side's record has it.
inline void Take(const Assignment& from, sluice_assignment* to) {
  to->items = from.items;
  to->units = from.units;
  to->num_dropped = from.num_dropped;
  to->nan_scores = from.nan_scores;
}
inline void Take(const sluice_assignment& from, Assignment* to) {
  to->items = from.items;
  to->units = from.units;
  to->num_dropped = from.num_dropped;
  to->nan_scores = from.nan_scores;
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
