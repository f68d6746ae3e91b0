#!/usr/bin/env python3
"""Creates a router: folder, method, reference, instantiation, test, and its line in builtin.def.
Usage: new_router.py ROOT DOMAIN NAME"""
import pathlib
import sys

root, domain, name = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
folder = root / "routers" / domain / name
if folder.exists():
    sys.exit(f"error: {folder} exists")
kind = "".join(w.capitalize() for w in name.split("_"))
guard = f"SLUICE_ROUTERS_{domain.upper()}_{name.upper()}_{name.upper()}"
path = f"sluice/routers/{domain}/{name}/{name}"
files = {
    f"{name}.h": f"""#ifndef {guard}_H_
#define {guard}_H_
// {kind}: say what it keeps, the paper (title, arXiv id), and the cost. As created it keeps the last `window` keys.
#include "sluice/api/attention_router.h"
#include "sluice/routers/attention/common/planning.h"

SLUICE_BEGIN_NAMESPACE
class {kind} {{
 public:
  static constexpr absl::string_view kName = "{name}";
  static constexpr bool kExactAtFullBudget = true, kTokenCausal = true;
  struct Config {{
    int64_t window = 64;
    template <class V>
    void VisitFields(V&& v) {{
      v("window", window, Range<int64_t>{{1, int64_t{{1}} << 31}}, "last keys that a query sees, itself included");
    }}
  }};
  struct Plan : AttentionPlanInfo {{}};
  static Config FullBudget() {{ return {{int64_t{{1}} << 31}}; }}
  static absl::StatusOr<{kind}> Create(const Config& c) {{ return {kind}(c); }}
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {{
    Plan p;
    p.shape = s;
    p.max_rows = attention_common::MaxTiles(s, kTile);
    p.entry_slots = 1;
    return p;
  }}
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte*, const RunContext&, PlanWriter& out) const {{
    PlanHeader header = attention_common::HeaderOf(p.shape, in, ListScope::kAllHeads, kTile);
    header.window = config_.window;
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kRuns, 1));
    for (int64_t tile = 0; tile < out.plan().num_tiles(); ++tile) {{
      const auto q = attention_common::QueriesOf(out.plan(), tile);
      const int64_t lo = std::max<int64_t>(0, q.first - config_.window + 1);
      out.entries(out.row_of(0, tile))[0] = {{static_cast<uint32_t>(lo), static_cast<uint32_t>(q.last + 1 - lo), EntryState::kExact, MaskClass::kLowerBound, 0, 0}};
      out.set_count(out.row_of(0, tile), 1);
    }}
    return absl::OkStatus();
  }}

 private:
  static constexpr int64_t kTile = 64;
  explicit {kind}(const Config& c) : config_(c) {{}}
  Config config_;
}};
SLUICE_END_NAMESPACE
#endif  // {guard}_H_
""",
    f"{name}_reference.h": f"""#ifndef {guard}_REFERENCE_H_
#define {guard}_REFERENCE_H_
// The specification: plain loops in double precision.
#include <cstdint>
#include <vector>

// Keys that query `t` keeps, ascending.
inline std::vector<uint32_t> {kind}Reference(int64_t t, int64_t window) {{
  std::vector<uint32_t> keys;
  for (int64_t s = 0; s <= t; ++s) {{
    if (s > t - window) keys.push_back(static_cast<uint32_t>(s));
  }}
  return keys;
}}
#endif  // {guard}_REFERENCE_H_
""",
    f"{name}.cc": f"""#include "{path}.h"

SLUICE_BEGIN_NAMESPACE
template class AttentionRouterOf<{kind}>;
SLUICE_END_NAMESPACE
""",
    f"{name}_test.cc": f"""#include "{path}.h"

#include <gtest/gtest.h>

#include "{path}_reference.h"
#include "sluice/routers/builtin.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace {{
TEST({kind}, ListsAreTheReference) {{
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 130, 2, 1, 32, 32, 1);
  auto router = BuiltinRouters().attention.Create("{name}:window=20");
  ASSERT_TRUE(router.ok()) << router.status();
  const RoutedRun r = RunRouter(**router, a);
  for (int64_t i = 0; i < 130; ++i) EXPECT_EQ(r.lists[static_cast<size_t>(i * 2)], {kind}Reference(70 + i, 20));
}}
}}  // namespace
SLUICE_END_NAMESPACE
""",
}
folder.mkdir(parents=True)
for file, text in files.items():
    (folder / file).write_text(text)
with (root / "routers" / "builtin.def").open("a") as f:
    f.write(f"SLUICE_METHOD({domain}, {name}, {kind})\n")
print(f"created routers/{domain}/{name}/ and its line in routers/builtin.def; next: ./dev test -R {kind}")
