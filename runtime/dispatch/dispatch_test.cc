#include "sluice/runtime/dispatch/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <mutex>
#include <thread>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dispatch/unit_major.h"
#include "sluice/runtime/kernels/gather/gather.h"
#include "sluice/tests/support/attention_data.h"

SLUICE_BEGIN_NAMESPACE
namespace dispatch_test {
// Unit u multiplies by u + 1 and adds u.
absl::Status Affine(const UnitRows& rows, const RunContext&) {
  const auto u = static_cast<float>(rows.unit);
  for (int64_t r = 0; r < rows.in.rows; ++r) {
    for (int64_t c = 0; c < rows.in.cols; ++c) rows.out.row(r)[c] = rows.in.row(r)[c] * (u + 1) + u;
  }
  return absl::OkStatus();
}
struct Problem {
  int64_t items = 37, units = 5, width = 20;
  std::vector<int64_t> row = {0};
  std::vector<int32_t> unit;
  std::vector<float> weight, in;
  explicit Problem(int64_t per_item) {
    for (int64_t i = 0; i < items; ++i) {
      int64_t n = 0;
      for (int64_t u = 0; u < units && n < per_item; ++u) {
        if (RandomUniform({1, 0, 0, static_cast<uint64_t>(u), static_cast<uint64_t>(i)}) < 0.4) {
          unit.push_back(static_cast<int32_t>(u));
          weight.push_back(static_cast<float>(
              RandomNormal({2, 0, 0, static_cast<uint64_t>(u), static_cast<uint64_t>(i)})));
          ++n;
        }
      }
      row.push_back(static_cast<int64_t>(unit.size()));
      for (int64_t c = 0; c < width; ++c)
        in.push_back(static_cast<float>(
            RandomNormal({3, 0, 0, static_cast<uint64_t>(c), static_cast<uint64_t>(i)})));
    }
  }
  Assignment View() {
    Assignment a;
    a.items = items;
    a.units = units;
    a.row_ptr = absl::MakeSpan(row);
    a.unit = absl::MakeSpan(unit);
    a.weight = absl::MakeSpan(weight);
    return a;
  }
};
constexpr Combine kCombines[] = {Combine::kWeightedSum, Combine::kResidual, Combine::kReplace,
                                 Combine::kBlend};
// Units by turns: alone, beside others, in pieces of rows.
UnitInfo Mixed(int64_t u) {
  return {.kind = UnitKind::kHost,
          .cost = 1.0 + static_cast<double>(u),
          .concurrency = static_cast<Concurrency>(u % 3),
          .max_rows = u == 4   ? 3
                      : u == 3 ? std::numeric_limits<int64_t>::max()
                               : 0};
}
absl::StatusOr<Dispatch> Make(const Problem& p, int workers = 1) {
  return Dispatch::Create({.max_items = p.items,
                           .in_width = p.width,
                           .out_width = p.width,
                           .max_entries = std::ssize(p.unit),
                           .max_units = p.units,
                           .piece_rows = 4,
                           .workers = workers});
}
// Memory that is NaN wherever it is read as floats.
OwnedWorkspace Dirty(size_t bytes) {
  OwnedWorkspace ws(bytes);
  std::memset(ws.data(), 0xFF, bytes);
  return ws;
}
struct Ran {
  absl::Status status;
  std::vector<float> out;
  DispatchCounters counters;
};
Ran RunOn(Problem& p, Combine combine, Dispatch::DescribeUnit describe, int threads,
          Dispatch::RunUnit run = Affine) {
  auto d = Make(p, threads);
  EXPECT_TRUE(d.ok()) << d.status();
  OwnedWorkspace ws = Dirty(d->workspace_bytes());
  const auto executor = MakeTbbExecutor(threads);
  Ran r;
  r.out.assign(p.in.size(), NAN);
  r.status = d->Run(p.View(), combine, {p.in.data(), p.items, p.width, p.width},
                    {r.out.data(), p.items, p.width, p.width}, {ws.workspace(), executor.get()},
                    describe, run, &r.counters);
  return r;
}

TEST(Dispatch, EveryCombineAgreesWithTheReference) {
  for (Combine combine : kCombines) {
    Problem p(combine == Combine::kReplace ? 1 : 3);
    const Ran r = RunOn(p, combine, Mixed, 1);
    ASSERT_TRUE(r.status.ok()) << r.status;
    EXPECT_EQ(r.counters.executed_rows, std::ssize(p.unit));
    double cost = 0;
    for (int32_t u : p.unit) cost += 1 + u;
    EXPECT_DOUBLE_EQ(r.counters.cost, cost);
    for (int64_t i = 0; i < p.items; ++i) {
      for (int64_t c = 0; c < p.width; ++c) {
        const double x = p.in[i * p.width + c];
        double want = combine == Combine::kWeightedSum ? 0 : x;
        for (int64_t e = p.row[i]; e < p.row[static_cast<size_t>(i) + 1]; ++e) {
          const double y = x * (p.unit[e] + 1) + p.unit[e];
          const double term = combine == Combine::kBlend ? y - x : y;
          want = combine == Combine::kReplace ? y : want + p.weight[e] * term;
        }
        EXPECT_NEAR(r.out[i * p.width + c], want, 1e-4);
      }
    }
  }
}
TEST(Dispatch, TheSameBitsForAnyNumberOfThreads) {
  for (Combine combine : kCombines) {
    Problem p(combine == Combine::kReplace ? 1 : 3);
    const Ran one = RunOn(p, combine, Mixed, 1);
    for (int threads : {2, 3, 8}) {
      const Ran many = RunOn(p, combine, Mixed, threads);
      EXPECT_EQ(many.out, one.out) << threads;
      EXPECT_EQ(many.counters.executed_rows, one.counters.executed_rows);
    }
  }
}

// Affine's units, adding to the result: the same multiplications and additions as Run's
// combination.
absl::Status AddAffine(const UnitShare& share, const RunContext&) {
  std::vector<float> y(share.in.cols);
  for (size_t j = 0; j < share.items.size(); ++j) {
    const float* x = share.in.row(share.items[j]);
    const auto u = static_cast<float>(share.unit);
    for (int64_t c = 0; c < share.in.cols; ++c) y[c] = x[c] * (u + 1) + u;
    kernels::ScatterAddRows(y.data(), &share.items[j], &share.weight[j], 1, share.out.cols,
                            share.out.data, share.out.row_stride);
  }
  return absl::OkStatus();
}
struct Adding {
  Combine combine = Combine::kResidual;
  int64_t tile_items = 1024;
  int threads = 1;
};
Ran AddOn(Problem& p, const Adding& how, Dispatch::DescribeUnit describe,
          Dispatch::AddUnit add = AddAffine) {
  const auto d = Dispatch::Create({.max_items = p.items,
                                   .in_width = p.width,
                                   .out_width = p.width,
                                   .max_entries = std::ssize(p.unit),
                                   .max_units = p.units,
                                   .workers = how.threads,
                                   .adds = true,
                                   .tile_items = how.tile_items});
  EXPECT_TRUE(d.ok()) << d.status();
  OwnedWorkspace ws = Dirty(d->workspace_bytes());
  const auto executor = MakeTbbExecutor(how.threads);
  Ran r;
  r.out.assign(p.in.size(), NAN);
  r.status = d->RunAdding(p.View(), how.combine, {p.in.data(), p.items, p.width, p.width},
                          {r.out.data(), p.items, p.width, p.width},
                          {ws.workspace(), executor.get()}, describe, add, &r.counters);
  return r;
}
// By rows, one unit skipped, one in calls of three.
UnitInfo Rows(int64_t u) {
  UnitInfo info = Mixed(u);
  info.concurrency = Concurrency::kRows;
  if (u == 2) info.kind = UnitKind::kSkip;
  return info;
}
TEST(Dispatch, AddingIsRunningForAnyTilesAndThreads) {
  for (Combine combine : {Combine::kWeightedSum, Combine::kResidual, Combine::kBlend}) {
    Problem p(3);
    for (Dispatch::DescribeUnit describe :
         {Dispatch::DescribeUnit(Mixed), Dispatch::DescribeUnit(Rows)}) {
      const Ran want = RunOn(p, combine, describe, 1);
      for (int64_t tile : {1, 5, 37, 1024}) {
        for (int threads : {1, 2, 8}) {
          const Ran r = AddOn(p, {combine, tile, threads}, describe);
          ASSERT_TRUE(r.status.ok()) << r.status;
          EXPECT_EQ(r.out, want.out) << tile << " " << threads;
          EXPECT_EQ(r.counters.executed_rows, want.counters.executed_rows);
          EXPECT_EQ(r.counters.skipped_items, want.counters.skipped_items);
          EXPECT_EQ(r.counters.cost, want.counters.cost);
        }
      }
    }
  }
}
TEST(Dispatch, SharesKeepToTheirTileAndTheirUnitsLimits) {
  Problem p(3);
  std::mutex mutex;
  std::vector<std::vector<int32_t>> seen(p.units);
  const auto add = [&](const UnitShare& share, const RunContext& ctx) {
    std::lock_guard lock(mutex);
    EXPECT_EQ(ctx.executor, nullptr);
    EXPECT_EQ(share.items.size(), share.weight.size());
    EXPECT_GT(share.items.size(), 0u);
    if (share.unit == 4) {
      EXPECT_LE(share.items.size(), 3u);
    }
    for (size_t j = 0; j < share.items.size(); ++j) {
      const int32_t item = share.items[j];
      EXPECT_EQ(item / 10, share.items[0] / 10);
      seen[share.unit].push_back(item);
      bool found = false;
      for (int64_t e = p.row[item]; e < p.row[item + 1]; ++e)
        found = found || (p.unit[e] == share.unit && p.weight[e] == share.weight[j]);
      EXPECT_TRUE(found) << item << " " << share.unit;
    }
    return absl::OkStatus();
  };
  ASSERT_TRUE(AddOn(p, {.tile_items = 10, .threads = 3}, Rows, add).status.ok());
  for (int64_t u = 0; u < p.units; ++u) {
    std::vector<int32_t> want;
    for (int64_t i = 0; i < p.items; ++i) {
      for (int64_t e = p.row[i]; e < p.row[i + 1]; ++e) {
        if (p.unit[e] == u && u != 2) want.push_back(static_cast<int32_t>(i));
      }
    }
    std::sort(seen[u].begin(), seen[u].end());
    EXPECT_EQ(seen[u], want);
  }
}
TEST(Dispatch, UnitsThatDoNotRunByRowsGetOneTileFromTheCallingThread) {
  Problem p(3);
  std::vector<int64_t> calls;
  const auto caller = std::this_thread::get_id();
  const auto add = [&](const UnitShare& share, const RunContext& ctx) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_NE(ctx.executor, nullptr);
    calls.push_back(share.unit);
    return AddAffine(share, ctx);
  };
  const auto units = [](int64_t u) -> UnitInfo {
    return {UnitKind::kHost, 1.0, u == 3 ? Concurrency::kUnits : Concurrency::kRows};
  };
  ASSERT_TRUE(AddOn(p, {.tile_items = 4, .threads = 4}, units, add).status.ok());
  EXPECT_THAT(calls, testing::ElementsAre(0, 1, 2, 3, 4));
}
TEST(Dispatch, AddingSaysWhatItDoesNotTake) {
  Problem p(1);
  EXPECT_THAT(AddOn(p, {Combine::kReplace}, Rows).status.message(),
              testing::HasSubstr("replacing adds nothing"));
  const auto fails = [](const UnitShare& share, const RunContext&) -> absl::Status {
    if (share.items[0] < 10) return absl::OkStatus();
    return absl::CancelledError(absl::StrCat("item ", share.items[0] / 10));
  };
  for (int threads : {1, 4}) {
    const Ran r = AddOn(p, {.tile_items = 10, .threads = threads}, Rows, fails);
    EXPECT_EQ(r.status.message(), "item 1");
  }
  const DispatchShape shape = {.max_items = 1,
                               .in_width = 1,
                               .out_width = 1,
                               .max_entries = 1,
                               .max_units = 1,
                               .adds = true};
  DispatchShape no_tiles = shape;
  no_tiles.tile_items = 0;
  EXPECT_THAT(Dispatch::Create(no_tiles).status().message(), testing::HasSubstr("tiles of 0"));
  Assignment none;
  const auto run = [](const UnitRows&, const RunContext&) { return absl::OkStatus(); };
  EXPECT_THAT(
      Dispatch::Create(shape)->Run(none, Combine::kResidual, {}, {}, {}, Mixed, run).message(),
      testing::HasSubstr("for RunAdding, not for Run"));
  EXPECT_THAT(Make(p)->RunAdding(none, Combine::kResidual, {}, {}, {}, Mixed, AddAffine).message(),
              testing::HasSubstr("for Run, not for RunAdding"));
}

TEST(Dispatch, TheTransposeIsExact) {
  Problem p(3);
  const Assignment a = p.View();
  std::vector<int64_t> begin(p.units + 1), slot(p.unit.size());
  std::vector<int32_t> item(p.unit.size());
  UnitMajor t = {absl::MakeSpan(begin), absl::MakeSpan(item), absl::MakeSpan(slot)};
  Transpose(a, t);
  std::vector<std::vector<int32_t>> want(p.units);
  for (int64_t i = 0; i < p.items; ++i) {
    for (int64_t e = p.row[i]; e < p.row[i + 1]; ++e) {
      want[p.unit[e]].push_back(static_cast<int32_t>(i));
      EXPECT_EQ(item[slot[e]], i);
    }
  }
  for (int64_t u = 0; u < p.units; ++u)
    EXPECT_EQ((std::vector<int32_t>(item.begin() + begin[u], item.begin() + begin[u + 1])),
              want[u]);
}
TEST(Dispatch, SkippedUnitsComputeNothingAndAreCounted) {
  Problem p(2);
  std::atomic<int64_t> rows = 0;
  const auto describe = [](int64_t u) -> UnitInfo {
    return {u == 1 ? UnitKind::kSkip : UnitKind::kHost, u == 1 ? 0.0 : 1.0, Concurrency::kRows};
  };
  const auto run = [&](const UnitRows& r, const RunContext& ctx) {
    EXPECT_NE(r.unit, 1);
    rows += r.in.rows;
    return Affine(r, ctx);
  };
  const Ran r = RunOn(p, Combine::kResidual, describe, 2, run);
  ASSERT_TRUE(r.status.ok()) << r.status;
  int64_t computed = 0, idle = 0;
  for (int64_t i = 0; i < p.items; ++i) {
    int64_t live = 0;
    for (int64_t e = p.row[i]; e < p.row[i + 1]; ++e) live += p.unit[e] != 1;
    computed += live;
    idle += live == 0;
    if (live > 0) continue;
    for (int64_t c = 0; c < p.width; ++c)
      EXPECT_EQ(r.out[i * p.width + c], p.in[i * p.width + c]);  // rides through
  }
  EXPECT_EQ(rows, computed);
  EXPECT_EQ(r.counters.executed_rows, computed);
  EXPECT_EQ(r.counters.skipped_items, idle);
  EXPECT_GT(idle, 0);
}
TEST(Dispatch, ErrorsReachTheCaller) {
  Problem p(2);
  EXPECT_THAT(RunOn(p, Combine::kReplace, Mixed, 1).status.message(),
              testing::HasSubstr("at most one"));
  const auto parallel = [](int64_t) -> UnitInfo {
    return {UnitKind::kHost, 1.0, Concurrency::kUnits};
  };
  for (int threads : {1, 4}) {  // of several errors the lowest unit's
    const Ran r = RunOn(p, Combine::kResidual, parallel, threads,
                        [](const UnitRows& rows, const RunContext&) -> absl::Status {
                          if (rows.unit == 0) return absl::OkStatus();
                          return absl::CancelledError(absl::StrCat("unit ", rows.unit));
                        });
    EXPECT_EQ(r.status.code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(r.status.message(), "unit 1");
  }
  p.unit[0] = 99;
  EXPECT_EQ(RunOn(p, Combine::kResidual, Mixed, 1).status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_FALSE(Dispatch::Create({}).ok());
  EXPECT_THAT(Dispatch::Create({.max_items = 1,
                                .in_width = int64_t{1} << 30,
                                .out_width = 1,
                                .max_entries = int64_t{1} << 30,
                                .max_units = 1})
                  .status()
                  .message(),
              testing::HasSubstr("2^40"));
}
}  // namespace dispatch_test
SLUICE_END_NAMESPACE
