// What a plug-in wrote into the record of an assignment, and what it says of its units: it is
// refused, or Dispatch runs it. Storage is cut to size, and the result is that of plain loops.
#include <cmath>
#include <cstdlib>
#include <vector>

#include "sluice/api/route_codec.h"
#include "sluice/runtime/dispatch/dispatch.h"
#include "sluice/tests/fuzz/near_values.h"

namespace {
using namespace sluice;
constexpr int64_t kWidth = 3;

// Rows of rising units, written by the numbers in the record.
void Write(NearValues& from, int64_t items, int64_t units, sluice_assignment& r) {
  r.items = from.Near(items);
  r.units = from.Near(units);
  r.nan_scores = from.Near(0, 3);
  int64_t at = 0;
  for (int64_t i = 0; i < r.row_ptr_size; ++i) {
    r.row_ptr[i] = from.Near(at);
    at = std::min(r.entry_slots, at + from.Within(0, 4));
  }
  int64_t unit = 0;
  int64_t row = 1;
  for (int64_t e = 0; e < r.entry_slots; ++e) {
    while (row < r.row_ptr_size && e >= r.row_ptr[row]) {
      unit = 0;
      ++row;
    }
    unit += from.Within(0, 2);
    r.unit[e] = static_cast<int32_t>(from.Near(unit++));
    r.weight[e] = from.Number();
    if (r.score != nullptr) r.score[e] = from.Number();
  }
  r.num_dropped = from.Near(0, r.dropped_slots);
  for (int64_t d = 0; d < r.dropped_slots; ++d)
    r.dropped[d] = {static_cast<int32_t>(from.Near(d / units)),
                    static_cast<int32_t>(from.Near(d % units))};
  // Pointers and sizes are the host's own: what became of them in the record does not matter.
  if (from.Within(0, 15) == 15) r.unit = nullptr;
  if (from.Within(0, 15) == 15) r.entry_slots = from.Near(r.entry_slots);
}

std::vector<UnitInfo> Describe(NearValues& from, int64_t units) {
  std::vector<UnitInfo> all;
  for (int64_t u = 0; u < units; ++u) {
    sluice_unit c = {};
    c.struct_size = sizeof c;
    c.kind = static_cast<uint32_t>(from.Near(0, 2));
    c.concurrency = static_cast<uint32_t>(from.Near(0, 2));
    c.cost = static_cast<double>(from.Number());
    c.max_rows = from.Near(0, 5);
    all.push_back(route_codec::FromC(c));
  }
  return all;
}

// Unit u multiplies by u + 1.
absl::Status RunUnit(const UnitRows& rows, const RunContext&) {
  for (int64_t i = 0; i < rows.in.rows; ++i) {
    for (int64_t x = 0; x < kWidth; ++x)
      rows.out.row(i)[x] = rows.in.row(i)[x] * static_cast<float>(rows.unit + 1);
  }
  return absl::OkStatus();
}

// What comes out of an item, of weighted sums and residuals.
bool AsReference(const Assignment& a, Combine combine, const std::vector<UnitInfo>& units,
                 const std::vector<float>& in, const std::vector<float>& out) {
  if (combine != Combine::kWeightedSum && combine != Combine::kResidual) return true;
  for (int64_t i = 0; i < a.items; ++i) {
    for (int64_t x = 0; x < kWidth; ++x) {
      const double own = in[static_cast<size_t>(i * kWidth + x)];
      double want = combine == Combine::kResidual ? own : 0;
      double size = 1;
      for (int64_t e = a.row_ptr[i]; e < a.row_ptr[i + 1]; ++e) {
        if (units[a.unit[e]].kind == UnitKind::kSkip) continue;
        const double part = static_cast<double>(a.weight[e]) * own * (a.unit[e] + 1);
        want += part;
        size += std::fabs(part);
      }
      const double got = out[static_cast<size_t>(i * kWidth + x)];
      if (std::isfinite(got) && std::fabs(got - want) > 1e-5 * size) return false;
    }
  }
  return true;
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  NearValues from(data, size);
  const int64_t items = from.Within(0, 20);
  const int64_t units = from.Within(1, 8);
  AssignmentBuffer buffer;
  buffer.Reserve(items, from.Within(0, 40), from.Within(0, 9));
  Assignment& a = buffer.view();
  if (from.Within(0, 3) == 0) a.score = {};
  sluice_assignment record = route_codec::ToC(a);
  Write(from, items, units, record);
  if (!route_codec::TakeChecked({.name = "fuzz"}, items, units, record, &a).ok()) return 0;

  const std::vector<UnitInfo> infos = Describe(from, units);
  const auto combine = static_cast<Combine>(from.Within(0, 3));
  const auto dispatch = Dispatch::Create({.max_items = items,
                                          .in_width = kWidth,
                                          .out_width = kWidth,
                                          .max_entries = static_cast<int64_t>(a.unit.size()),
                                          .max_units = units,
                                          .piece_rows = from.Within(1, 4)});
  if (!dispatch.ok()) return 0;
  std::vector<float> in(static_cast<size_t>(items * kWidth));
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 7) - 3;
  std::vector<float> out(in.size());
  OwnedWorkspace memory(dispatch->workspace_bytes());
  const absl::Status s = dispatch->Run(
      a, combine, {in.data(), items, kWidth, kWidth}, {out.data(), items, kWidth, kWidth},
      {memory.workspace(), nullptr}, [&](int64_t unit) { return infos[static_cast<size_t>(unit)]; },
      RunUnit);
  if (s.ok() && !AsReference(a, combine, infos, in, out)) std::abort();
  return 0;
}
