#include "sluice/runtime/kernels/attention_panel/attention_panel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "sluice/runtime/kernels/attention_panel/attention_panel_reference.h"
#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/for_each_target.h"
#include "sluice/tests/support/normal_values.h"

namespace sluice::kernels {
namespace attention_panel_test {
struct Problem {
  int64_t rows, keys, d, dv;
  DType type;
  float softcap = 0;
  bool masked = false, biased = false, gathered = false;
  int64_t window = 0;  // > 0: row r sees the keys (2 r - window, 2 r]
};
std::vector<float> Round(const std::vector<float>& x, DType t, std::vector<uint32_t>& raw) {
  raw.resize(x.size() + 16);
  ConvertFromF32(x.data(), x.size(), t, raw.data());
  std::vector<float> back(x.size());
  ConvertToF32(raw.data(), t, x.size(), back.data());
  return back;
}

// Runs panels of one problem. Returns the worst error against the reference, and checks the
// log-sum-exp.
double RunProblem(const Problem& p, bool by_rows = false) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(p.d));
  std::vector<uint32_t> kraw, vraw;
  const std::vector<float> q = Normal(p.rows * p.d, 1),
                           k = Round(Normal(p.keys * p.d, 2), p.type, kraw),
                           v = Round(Normal(p.keys * p.dv, 3), p.type, vraw),
                           bias = Normal(p.keys + 64, 4);
  std::vector<uint32_t> order(p.keys);
  for (int64_t i = 0; i < p.keys; ++i)
    order[i] = static_cast<uint32_t>(p.gathered ? (i * 37) % p.keys : i);
  const int64_t dvp = (p.dv + kValuePad - 1) / kValuePad * kValuePad;
  std::vector<float> qs(q), kt(p.d * kPanelKeys), vp(kPanelKeys * dvp), m(p.rows, -INFINITY),
      l(p.rows, 0), o(p.rows * dvp, 0), scratch(AttentionScratchFloats(p.rows)), b2(64);
  for (float& e : qs) e *= scale * kLog2E;
  std::vector<uint64_t> mask(p.rows);
  const auto sees = [&](int64_t r, int64_t pos) {
    if (p.window > 0) return pos <= 2 * r && pos > 2 * r - p.window;
    return !p.masked || (r % 5 != 0 && (pos * 7 + r * 3) % 4 != 0);
  };
  for (int64_t at = 0; at < p.keys; at += kPanelKeys) {
    const int64_t n = std::min(kPanelKeys, p.keys - at);
    const int64_t kb = DTypeBytes(p.type, p.d), vb = DTypeBytes(p.type, p.dv);
    PanelSource ks{kraw.data(), p.type, kb, &order[at]}, vs{vraw.data(), p.type, vb, &order[at]};
    AttentionPanel a;
    PackKeyPanel(ks, n, p.d, kt.data());
    PackValuePanel(vs, n, p.dv, dvp, vp.data());
    a.kt = kt.data();
    a.v = vp.data();
    a.v_stride = dvp;
    a.n = n;
    a.q = qs.data();
    a.rows = p.rows;
    a.d = p.d;
    a.dv = dvp;
    a.softcap = p.softcap;
    a.m = m.data();
    a.l = l.data();
    a.o = o.data();
    // What a step leaves there must not reach the next one.
    std::fill(scratch.begin(), scratch.end(), NAN);
    a.scratch = scratch.data();
    if (p.masked || p.window > 0) {
      for (int64_t r = 0; r < p.rows; ++r) {
        mask[r] = 0;
        for (int64_t j = 0; j < n; ++j) mask[r] |= static_cast<uint64_t>(sees(r, at + j)) << j;
      }
      a.mask = mask.data();
    }
    if (p.biased) {
      for (int64_t j = 0; j < 64; ++j) b2[j] = j < n ? bias[at + j] * kLog2E : 0;
      a.bias = b2.data();
    }
    PanelAhead ahead;
    if (at + n < p.keys) {
      ahead = {ks, vs, std::min(kPanelKeys, p.keys - at - n)};
      ahead.keys.ids = ahead.values.ids = &order[at + n];
    }
    const float gain = by_rows ? AttendRows(a, ks, vs, ahead) : AttendPanel(a);
    EXPECT_GE(gain, 0);
    EXPECT_LE(gain, 1);
  }
  double worst = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    std::vector<int64_t> seen;
    for (int64_t j = 0; j < p.keys; ++j) {
      if (sees(r, j)) seen.push_back(j);
    }
    std::vector<double> want(p.dv);
    const double lse = AttendRowReference(
        seen.size(), p.dv,
        [&](int64_t s) {
          double x = 0;
          for (int64_t i = 0; i < p.d; ++i)
            x += static_cast<double>(q[r * p.d + i]) * k[order[seen[s]] * p.d + i];
          x *= scale;
          if (p.softcap > 0) x = p.softcap * std::tanh(x / p.softcap);
          return x + (p.biased ? bias[seen[s]] : 0);
        },
        [&](int64_t s, int64_t i) { return v[order[seen[s]] * p.dv + i]; }, want.data());
    if (seen.empty()) {
      EXPECT_EQ(l[r], 0);
      EXPECT_EQ(m[r], -INFINITY);
      continue;
    }
    EXPECT_NEAR((m[r] + std::log2(l[r])) * kLn2, lse, 1e-5);
    for (int64_t i = 0; i < p.dv; ++i)
      worst = std::max(worst, std::abs(o[r * dvp + i] / l[r] - want[i]));
  }
  return worst;
}
std::vector<Problem> Problems(DType type) {
  return {{1, 1, 64, 64, type},
          {4, 200, 64, 64, type, 0, true},
          {7, 130, 40, 24, type, 0, false, true},
          {49, 64, 64, 128, type},
          {100, 300, 96, 16, type, 0, true, true},
          {6, 77, 64, 64, type, 2.0f, true, true, true},
          {256, 65, 64, 64, type, 0, true},
          {130, 200, 64, 48, type, 0, false, false, false, 3},
          {130, 290, 40, 64, type, 0, false, true, false, 100},
          {70, 200, 64, 16, type, 2.0f, false, false, true, 30}};
}
TEST(AttentionPanel, AgreesWithTheReference) {
  ForEachTarget([&](const char* target) {
    for (DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const Problem& p : Problems(t))
        EXPECT_LT(RunProblem(p), 1e-5) << target << " " << DTypeName(t) << " rows=" << p.rows;
    }
  });
}
TEST(AttentionPanel, AFewRowsAgreeWithTheReference) {
  ForEachTarget([&](const char* target) {
    for (DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (int64_t rows = 1; rows <= kFewRows; ++rows) {
        for (const Problem& p : {Problem{rows, 1, 64, 64, t}, Problem{rows, 200, 64, 128, t},
                                 Problem{rows, 130, 48, 80, t, 0, true, true},
                                 Problem{rows, 77, 128, 16, t, 2.0f, true, true, true}})
          EXPECT_LT(RunProblem(p, true), 1e-5) << target << " " << DTypeName(t) << " " << rows;
      }
    }
  });
}
TEST(AttentionPanel, ProbabilitiesSumToOne) {
  ForEachTarget([&](const char* target) {
    const int64_t d = 32, n = 50;
    std::vector<float> q = Normal(3 * d, 1), k = Normal(n * d, 2), kt(d * 64), v(n * 16, 1.0f),
                       m(3, -INFINITY), l(3, 0), o(48, 0), s(AttentionScratchFloats(3)),
                       prob(3 * n);
    PackKeyPanel({k.data(), DType::kF32, d * 4, nullptr}, n, d, kt.data());
    AttentionPanel a;
    a.kt = kt.data();
    a.v = v.data();
    a.v_stride = 16;
    a.n = n;
    a.q = q.data();
    a.rows = 3;
    a.d = d;
    a.dv = 16;
    a.m = m.data();
    a.l = l.data();
    a.o = o.data();
    a.scratch = s.data();
    AttendPanel(a);
    PanelProbabilities(a, prob.data(), n);
    for (int64_t r = 0; r < 3; ++r) {
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += prob[r * n + j];
      EXPECT_NEAR(sum, 1, 1e-5) << target;
    }
  });
}
}  // namespace attention_panel_test
}  // namespace sluice::kernels
