#include "sluice/runtime/dispatch/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/attention_data.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// Unit u multiplies by u + 1 and adds u.
absl::Status Affine(int64_t u, MatrixView<const float> in, const int32_t*, MatrixView<float> out) {
  for (int64_t r = 0; r < in.rows; ++r) {
    for (int64_t c = 0; c < in.cols; ++c)
      out.row(r)[c] = in.row(r)[c] * static_cast<float>(u + 1) + static_cast<float>(u);
  }
  return absl::OkStatus();
}
struct Problem {
  int64_t items = 37, units = 5, width = 20;
  std::vector<int32_t> row = {0}, unit;
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
      row.push_back(static_cast<int32_t>(unit.size()));
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
TEST(Dispatch, EveryCombineAgreesWithTheReference) {
  for (Combine combine : {Combine::kWeightedSum, Combine::kResidual, Combine::kReplace}) {
    Problem p(combine == Combine::kReplace ? 1 : 3);
    auto d = Dispatch::Create({p.items, p.width, p.width, static_cast<int64_t>(p.unit.size())});
    ASSERT_TRUE(d.ok());
    OwnedWorkspace ws(d->workspace_bytes());
    std::vector<float> out(p.in.size(), NAN);
    DispatchCounters counters;
    const absl::Status s = d->Run(p.View(), combine, {p.in.data(), p.items, p.width, p.width},
                                  {out.data(), p.items, p.width, p.width},
                                  {ws.workspace(), nullptr}, Affine, &counters);
    ASSERT_TRUE(s.ok()) << s;
    EXPECT_EQ(counters.executed_rows, static_cast<int64_t>(p.unit.size()));
    for (int64_t i = 0; i < p.items; ++i) {
      for (int64_t c = 0; c < p.width; ++c) {
        const double x = p.in[i * p.width + c];
        double want = combine == Combine::kWeightedSum ? 0 : x;
        for (int32_t e = p.row[i]; e < p.row[static_cast<size_t>(i) + 1]; ++e) {
          const double y = x * (p.unit[e] + 1) + p.unit[e];
          want = combine == Combine::kReplace ? y : want + p.weight[e] * y;
        }
        EXPECT_NEAR(out[i * p.width + c], want, 1e-4);
      }
    }
  }
}
TEST(Dispatch, ErrorsReachTheCaller) {
  Problem p(2);
  auto d = Dispatch::Create({p.items, p.width, p.width, static_cast<int64_t>(p.unit.size())});
  OwnedWorkspace ws(d->workspace_bytes());
  std::vector<float> out(p.in.size());
  const MatrixView<const float> in{p.in.data(), p.items, p.width, p.width};
  const MatrixView<float> o{out.data(), p.items, p.width, p.width};
  EXPECT_THAT(
      std::string(
          d->Run(p.View(), Combine::kReplace, in, o, {ws.workspace(), nullptr}, Affine).message()),
      testing::HasSubstr("at most one"));
  EXPECT_EQ(d->Run(p.View(), Combine::kResidual, in, o, {ws.workspace(), nullptr},
                   [](int64_t, MatrixView<const float>, const int32_t*, MatrixView<float>) {
                     return absl::CancelledError("no");
                   })
                .code(),
            absl::StatusCode::kCancelled);
  p.unit[0] = 99;
  EXPECT_EQ(d->Run(p.View(), Combine::kResidual, in, o, {ws.workspace(), nullptr}, Affine).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_FALSE(Dispatch::Create({0, 1, 1, 1}).ok());
}
}  // namespace
SLUICE_END_NAMESPACE
