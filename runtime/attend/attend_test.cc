#include "sluice/runtime/attend/attend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>

#include "sluice/api/plan_check.h"
#include "sluice/runtime/attend/attend_reference.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/tests/support/attention_data.h"

SLUICE_BEGIN_NAMESPACE
namespace attend_test {
// Owns the storage of a random plan.
struct TestPlan {
  AttentionPlan plan;
  std::vector<AttentionBranch> branches = std::vector<AttentionBranch>(1);
  std::vector<int64_t> begin;
  std::vector<uint32_t> count, tokens, prefix, kperm;
  std::vector<PlanEntry> entries;
  std::vector<float> entry_bias, key_bias, weights;
  std::vector<uint64_t> row_mask;
  std::vector<int32_t> positions;
};
struct PlanKind {
  Encoding encoding = Encoding::kBlocks;
  ListScope scope = ListScope::kKvHead;
  int64_t tile = 64, unit = 16, window = 0;
  double keep = 0.5;
  bool entry_bias = false, key_bias = false, row_mask = false, permute = false, scattered = false;
};

std::unique_ptr<TestPlan> RandomPlan(const PlanKind& kind, const AttentionData& a, unsigned seed) {
  auto t = std::make_unique<TestPlan>();
  std::mt19937 g(seed);
  const auto yes = [&](double p) { return std::uniform_real_distribution<>()(g) < p; };
  AttentionPlan& p = t->plan;
  p.q_begin = a.q_begin();
  p.q_count = a.q_count;
  p.kv_len = a.kv_len;
  p.heads = static_cast<int32_t>(a.heads);
  p.kv_heads = static_cast<int32_t>(a.kv_heads);
  if (kind.scattered) {  // any ascending places, so that neighbours in a tile may stand far apart
    for (int64_t i = 0; i < a.kv_len; ++i) t->positions.push_back(static_cast<int32_t>(i));
    while (static_cast<int64_t>(t->positions.size()) > p.q_count)
      t->positions.erase(t->positions.begin() + static_cast<int64_t>(g() % t->positions.size()));
    p.q_positions = t->positions;
  }
  AttentionBranch& b = t->branches[0];
  b.encoding = kind.encoding;
  b.scope = kind.scope;
  b.tile = kind.tile;
  b.window = kind.window;
  b.block = kind.unit;
  b.num_tiles = (p.q_count + b.tile - 1) / b.tile;
  b.num_lists = NumLists(b.scope, a.heads, a.kv_heads);
  if (kind.permute) {
    for (int64_t i = 0; i < a.kv_len; ++i) t->kperm.push_back(static_cast<uint32_t>(i));
    std::shuffle(t->kperm.begin(), t->kperm.end(), g);
  }
  const int64_t lists = b.num_lists;
  for (int64_t l = 0; l < lists; ++l) {
    for (int64_t tile = 0; tile < b.num_tiles; ++tile) {
      const int64_t first = p.position(tile * b.tile),
                    last = p.position(std::min(p.q_count, (tile + 1) * b.tile) - 1);
      const bool token =
          kind.encoding == Encoding::kTokens || kind.encoding == Encoding::kRankedPrefix;
      t->begin.push_back(std::ssize(t->tokens) * token + std::ssize(t->entries) * !token);
      const size_t before = token ? t->tokens.size() : t->entries.size();
      const int64_t end = kind.permute ? a.kv_len - 1 : last;
      if (!yes(0.05)) {  // some rows stay empty
        if (kind.encoding == Encoding::kTokens) {
          for (int64_t k = 0; k <= end; ++k)
            if (yes(kind.keep)) t->tokens.push_back(static_cast<uint32_t>(k));
        } else if (kind.encoding == Encoding::kRankedPrefix) {
          for (int64_t k = 0; k <= end / kind.unit; ++k)
            t->tokens.push_back(static_cast<uint32_t>(k));
          std::shuffle(t->tokens.begin() + static_cast<int64_t>(before), t->tokens.end(), g);
        } else {
          const int64_t unit = kind.encoding == Encoding::kBlocks ? kind.unit : 1;
          for (int64_t k = 0; k <= end / unit;) {
            const int64_t len = std::min<int64_t>(
                1 + static_cast<int64_t>(g() % (kind.encoding == Encoding::kBlocks ? 2 : 40)),
                end / unit + 1 - k);
            if (yes(kind.keep)) {
              PlanEntry e;
              e.start = static_cast<uint32_t>(k);
              e.len = static_cast<uint32_t>(len);
              e.mask = kind.permute ? MaskClass::kPermCausal
                       : (k + len) * unit - 1 <= first && yes(0.5) && kind.window == 0
                           ? MaskClass::kFull
                       : kind.window > 0 && yes(0.5) ? MaskClass::kLowerBound
                                                     : MaskClass::kCausal;
              t->entries.push_back(e);
            }
            k += len;
          }
        }
      }
      t->count.push_back(
          static_cast<uint32_t>((token ? t->tokens.size() : t->entries.size()) - before));
    }
  }
  if (kind.encoding == Encoding::kRankedPrefix) {
    for (int64_t h = 0; h < a.heads; ++h) {
      for (int64_t tile = 0; tile < b.num_tiles; ++tile) {
        const uint32_t c = t->count[h / (a.heads / a.kv_heads) * b.num_tiles + tile];
        t->prefix.push_back(static_cast<uint32_t>(g() % (c + 1)));
      }
    }
  }
  const size_t pool = std::max(t->entries.size(), t->tokens.size());
  std::normal_distribution<float> nd;
  if (kind.entry_bias)
    for (size_t i = 0; i < pool; ++i) t->entry_bias.push_back(nd(g));
  if (kind.key_bias)
    for (int64_t i = 0; i < a.kv_heads * a.kv_len; ++i) t->key_bias.push_back(nd(g));
  if (kind.row_mask)
    for (size_t i = 0; i < pool; ++i)
      t->row_mask.push_back((static_cast<uint64_t>(g()) << 32) | g());
  b.rows = {t->begin, t->count};
  b.entries = t->entries;
  b.tokens = t->tokens;
  b.prefix = t->prefix;
  b.entry_bias = t->entry_bias;
  b.row_mask = t->row_mask;
  p.key_perm = t->kperm;
  p.key_bias = t->key_bias;
  p.branches = t->branches;
  return t;
}

struct Result {
  std::vector<float> o, lse;
  AttentionCounters counters;
  absl::Status status;
};
Result RunPlan(const AttentionPlan& p, const AttentionData& a, AttendOptions options,
               int threads = 1, SoftmaxState* resume = nullptr, SoftmaxState* state = nullptr,
               std::vector<float>* probs = nullptr, const LogitMask& mask = {}) {
  Result r;
  AttendShape s;
  s.max_queries = a.q_count;
  s.max_kv = a.kv_len;
  s.heads = static_cast<int>(a.heads);
  s.kv_heads = static_cast<int>(a.kv_heads);
  s.head_dim = static_cast<int>(a.d);
  s.value_dim = static_cast<int>(a.dv);
  for (const AttentionBranch& b : p.branches) {
    s.max_tile = std::max(s.max_tile, b.tile);
    s.max_slots = std::max(s.max_slots, b.order_slots * b.num_lists);
  }
  s.workers = threads;
  s.max_branches = static_cast<int>(p.branches.size());
  options.probabilities = probs != nullptr;
  absl::StatusOr<Attend> attend = Attend::Create(s, options);
  EXPECT_TRUE(attend.ok()) << attend.status();
  OwnedWorkspace ws(attend->workspace_bytes());
  std::unique_ptr<Executor> ex = MakeTbbExecutor(threads);
  r.o.assign(a.q_count * a.heads * a.dv, NAN);
  r.lse.assign(a.q_count * a.heads, NAN);
  AttendOutputs out;
  out.o = {r.o.data(), a.q_count, a.heads, a.dv, a.heads * a.dv, a.dv};
  if (p.merge == Merge::kLse) out.lse = r.lse.data();
  out.counters = &r.counters;
  if (resume != nullptr) out.resume = *resume;
  if (state != nullptr) out.state = *state;
  if (probs != nullptr) {
    probs->assign(a.heads * a.q_count * a.kv_len, NAN);
    out.probabilities = {probs->data(), a.heads * a.q_count, a.kv_len, a.kv_len};
  }
  AttendInputs in;
  in.q = a.Q();
  in.k = a.K();
  in.v = a.V();
  in.scale = a.scale();
  in.mask = mask;
  r.status = attend->Run(p, in, {ws.workspace(), ex.get()}, out);
  return r;
}
void ExpectNear(const Result& r, const ReferenceAttention& want, double tol,
                const std::string& what) {
  ASSERT_TRUE(r.status.ok()) << r.status;
  double worst = 0;
  for (size_t i = 0; i < r.o.size(); ++i) {
    ASSERT_TRUE(std::isfinite(r.o[i])) << what << " at " << i;
    worst = std::max(worst, std::abs(r.o[i] - want.o[i]));
  }
  EXPECT_LT(worst, tol) << what;
  for (size_t i = 0; i < r.lse.size(); ++i) {
    if (std::isnan(r.lse[i])) continue;
    if (std::isinf(want.lse[i]))
      EXPECT_EQ(r.lse[i], -INFINITY) << what;
    else
      EXPECT_NEAR(r.lse[i], want.lse[i], 10 * tol) << what;
  }
  EXPECT_EQ(r.counters.exact_pairs, want.exact_pairs) << what;
}

std::vector<PlanKind> Kinds() {
  std::vector<PlanKind> kinds;
  for (ListScope scope : {ListScope::kQueryHead, ListScope::kKvHead, ListScope::kAllHeads}) {
    kinds.push_back({Encoding::kBlocks, scope, 64, 16});
    kinds.push_back({Encoding::kBlocks, scope, 16, 64, 100});
    kinds.push_back({Encoding::kRuns, scope, 33, 1, 70});
    kinds.push_back({Encoding::kTokens, scope, 1, 1, 0, 0.3});
    kinds.push_back({Encoding::kTokens, scope, 8, 1, 0, 0.7, true, true, true});
    kinds.push_back({Encoding::kRuns, scope, 64, 1, 0, 0.6, true, true, true});
    kinds.push_back({Encoding::kRuns, scope, 32, 1, 0, 0.6, false, false, false, true});
    kinds.push_back({Encoding::kBlocks, scope, 1, 64, 0, 0.4});
  }
  kinds.push_back({Encoding::kRankedPrefix, ListScope::kKvHead, 32, 32});
  kinds.push_back({Encoding::kRankedPrefix, ListScope::kKvHead, 64, 64});
  return kinds;
}

TEST(Attend, EveryEncodingScopeAndMask) {
  unsigned seed = 1;
  for (const PlanKind& kind : Kinds()) {
    for (auto [kv, q] : {std::pair<int64_t, int64_t>{130, 130}, {201, 77}, {300, 1}, {1, 1}}) {
      AttentionData a = MakeAttentionData(DataKind::kGaussian, kv, q, 4, 2, 24, 40, seed);
      auto t = RandomPlan(kind, a, seed++);
      ASSERT_TRUE(ValidateAttentionPlan(t->plan).ok()) << ValidateAttentionPlan(t->plan);
      const auto want = AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale());
      const std::string what =
          absl::StrCat("encoding ", static_cast<int>(kind.encoding), " scope ",
                       static_cast<int>(kind.scope), " tile ", kind.tile, " kv ", kv, " q ", q);
      ExpectNear(RunPlan(t->plan, a, {}), want, 2e-5, what);
      AttendOptions cap;
      cap.softcap = 1.5f;
      ExpectNear(RunPlan(t->plan, a, cap),
                 AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale(), 1.5), 2e-5,
                 what + " softcap");
    }
  }
}
// A few rows of any plan, multiplied as they are read.
TEST(Attend, FewRowsWithoutPacking) {
  unsigned seed = 1;
  for (const PlanKind& kind : Kinds()) {
    for (DType type : {DType::kF32, DType::kBF16, DType::kF16, DType::kQ8_0, DType::kQ4_0}) {
      for (auto [kv, q] : {std::pair<int64_t, int64_t>{300, 1}, {201, 2}, {1, 1}, {130, 60}}) {
        const int64_t dv = InBlocks(type) ? 64 : 48;
        AttentionData a = MakeAttentionData(DataKind::kGaussian, kv, q, 8, 2, 32, dv, seed);
        if (type != DType::kF32) a.Convert(type);
        auto t = RandomPlan(kind, a, seed++);
        const auto want = AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale(), 1.5);
        AttendOptions options;
        options.softcap = 1.5f;
        options.few_rows = true;
        options.bf16 = kernels::Bf16Unit::kNone;  // of the larger tiles: to full precision
        const Result got = RunPlan(t->plan, a, options);
        ExpectNear(got, want, 2e-5, absl::StrCat("scope ", static_cast<int>(kind.scope), " q ", q));
        EXPECT_EQ(got.o, RunPlan(t->plan, a, options, 3).o);
      }
    }
  }
}
// What hosts give as a matrix: hidden pairs, values, a factor a head.
TEST(Attend, LogitMasks) {
  unsigned seed = 1;
  for (const PlanKind& kind : Kinds()) {
    for (auto [kv, q] : {std::pair<int64_t, int64_t>{130, 130}, {201, 77}, {300, 1}}) {
      for (const bool values : {false, true}) {
        AttentionData a = MakeAttentionData(DataKind::kGaussian, kv, q, 4, 2, 32, 32, seed);
        auto t = RandomPlan(kind, a, seed++);
        const int64_t stride = kv + 5;
        std::vector<uint16_t> mask(static_cast<size_t>(q * stride), 0);
        for (int64_t i = 0; i < q; ++i) {
          for (int64_t k = 0; k < kv; ++k) {
            uint16_t& x = mask[i * stride + k];
            if ((i * 5 + k * 3) % 7 == 0 && k / 64 != 1) x = 0xFC00;  // -inf
            if (values && (i + k) % 5 == 0 && x == 0) x = 0xBE00;     // -1.5
          }
        }
        const float slopes[] = {1, 0.5f, 0.25f, 2};
        const LogitMask added = {mask.data(), stride, values ? slopes : nullptr};
        AttendOptions options;
        options.logit_mask = true;
        const Result got = RunPlan(t->plan, a, options, 1, nullptr, nullptr, nullptr, added);
        const auto want = AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale(), 0, added);
        ExpectNear(got, want, 2e-5, absl::StrCat("values ", values, " q ", q));
      }
    }
  }
  // A hidden key's NaN stays hidden; a mask that was not announced is refused.
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 70, 70, 4, 2, 32, 32, 1);
  auto t = RandomPlan({Encoding::kRuns, ListScope::kAllHeads, 64, 1, 0, 1.0}, a, 3);
  std::vector<uint16_t> mask(70 * 70, 0);
  for (int64_t i = 0; i < 70; ++i) mask[i * 70 + 3] = 0xFC00;
  const LogitMask hides = {mask.data(), 70, nullptr};
  AttendOptions options;
  options.logit_mask = true;
  const auto clean = RunPlan(t->plan, a, options, 1, nullptr, nullptr, nullptr, hides);
  for (int64_t h = 0; h < 2; ++h) a.v[(3 * 2 + h) * 32] = NAN;
  const auto nan = RunPlan(t->plan, a, options, 1, nullptr, nullptr, nullptr, hides);
  EXPECT_EQ(clean.o, nan.o);
  const uint64_t zero[] = {2, 2};  // of two tiles: the second panel
  const LogitMask told = {mask.data(), 70, nullptr, zero};
  EXPECT_EQ(RunPlan(t->plan, a, options, 1, nullptr, nullptr, nullptr, told).o, clean.o);
  const uint64_t wrong[] = {3,
                            3};  // what is told is believed: key 3 is seen, its value is no number
  const LogitMask lies = {mask.data(), 70, nullptr, wrong};
  EXPECT_TRUE(
      std::isnan(RunPlan(t->plan, a, options, 1, nullptr, nullptr, nullptr, lies).o[69 * 4 * 32]));
  const auto refused = RunPlan(t->plan, a, {}, 1, nullptr, nullptr, nullptr, hides);
  EXPECT_THAT(std::string(refused.status.message()), testing::HasSubstr("logit_mask"));
}
// The units that may work on a cache of this type, by name; kBest is one of them.
std::vector<kernels::Bf16Unit> UnitsFor(DType type) {
  std::vector<kernels::Bf16Unit> units = {kernels::Bf16Unit::kNone};
  if (type != DType::kBF16) return units;
  for (kernels::Bf16Unit u : {kernels::Bf16Unit::kAmx, kernels::Bf16Unit::kAvx512}) {
    if (kernels::GetBf16Attention(u) != nullptr) units.push_back(u);
  }
  return units;
}
TEST(Attend, HalfPrecisionCaches) {
  for (DType type : {DType::kBF16, DType::kF16}) {
    AttentionData a = MakeAttentionData(DataKind::kGaussian, 260, 100, 8, 2, 64, 64, 3);
    a.Convert(type);
    auto t = RandomPlan({Encoding::kBlocks, ListScope::kKvHead, 64, 64}, a, 5);
    const auto want = AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale());
    for (kernels::Bf16Unit unit : UnitsFor(type)) {
      AttendOptions options;
      options.bf16 = unit;
      const bool fp32 = unit == kernels::Bf16Unit::kNone;
      ExpectNear(RunPlan(t->plan, a, options), want, fp32 ? 2e-5 : 2e-2,
                 absl::StrCat(DTypeName(type), " unit ", static_cast<int>(unit)));
    }
  }
}
TEST(Attend, ABf16UnitByNameMustBeThere) {
  AttendShape s;
  s.max_queries = s.max_kv = 64;
  s.heads = s.kv_heads = 1;
  s.head_dim = s.value_dim = 16;
  for (kernels::Bf16Unit unit : {kernels::Bf16Unit::kBest, kernels::Bf16Unit::kAmx,
                                 kernels::Bf16Unit::kAvx512, kernels::Bf16Unit::kNone}) {
    AttendOptions options;
    options.bf16 = unit;
    const bool free = unit == kernels::Bf16Unit::kBest || unit == kernels::Bf16Unit::kNone;
    EXPECT_EQ(Attend::Create(s, options).ok(), free || kernels::GetBf16Attention(unit) != nullptr);
  }
}
TEST(Attend, Bf16UnitsGiveTheSameBitsForAnyThreadCount) {
  for (int64_t q : {90, 1}) {
    AttentionData a = MakeAttentionData(DataKind::kGaussian, 700, q, 8, 2, 32, 48, 17);
    a.Convert(DType::kBF16);
    auto t = RandomPlan({Encoding::kBlocks, ListScope::kKvHead, 64, 64}, a, 5);
    for (kernels::Bf16Unit unit : UnitsFor(DType::kBF16)) {
      AttendOptions options;
      options.split_keys = 128;
      options.bf16 = unit;
      const Result one = RunPlan(t->plan, a, options, 1);
      const Result four = RunPlan(t->plan, a, options, 4);
      EXPECT_EQ(one.o, four.o);
      ExpectNear(one, AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale()), 2e-2, "split");
    }
  }
}
TEST(Attend, SameBitsForAnyThreadCount) {
  unsigned seed = 100;
  for (const PlanKind& kind : Kinds()) {
    for (int64_t q : {90, 1}) {
      AttentionData a = MakeAttentionData(DataKind::kGaussian, 700, q, 8, 2, 32, 32, seed);
      auto t = RandomPlan(kind, a, seed++);
      AttendOptions options;
      options.split_keys = 128;
      const Result one = RunPlan(t->plan, a, options, 1), four = RunPlan(t->plan, a, options, 4);
      EXPECT_EQ(one.o, four.o);
      EXPECT_EQ(one.lse, four.lse);
      EXPECT_EQ(one.counters.exact_pairs, four.counters.exact_pairs);
      ExpectNear(one, AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale()), 2e-5, "split");
    }
  }
}
TEST(Attend, KvMajorAndGroupsAgree) {
  for (ListScope scope : {ListScope::kQueryHead, ListScope::kKvHead, ListScope::kAllHeads}) {
    for (PlanKind kind :
         {PlanKind{Encoding::kBlocks, scope, 16, 64}, PlanKind{Encoding::kRuns, scope, 8, 1},
          PlanKind{Encoding::kTokens, scope, 1, 1, 0, 0.2},
          PlanKind{Encoding::kBlocks, scope, 1, 32, 50}}) {
      AttentionData a = MakeAttentionData(DataKind::kGaussian, 333, 150, 4, 2, 32, 32, 7);
      auto t = RandomPlan(kind, a, 9);
      const auto want = AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale());
      AttendOptions kv;
      kv.mode = AttendMode::kKvMajor;
      ExpectNear(RunPlan(t->plan, a, kv, 2), want, 2e-5, "KV-major");
      for (int64_t group : {1, 8, 16}) {
        AttendOptions o;
        o.token_group = group;
        ExpectNear(RunPlan(t->plan, a, o), want, 2e-5, absl::StrCat("group ", group));
      }
    }
  }
}
TEST(Attend, ScatteredQueriesSeeTheirOwnPast) {
  for (PlanKind kind : {PlanKind{Encoding::kBlocks, ListScope::kKvHead, 64, 64, 0, 1.0},
                        PlanKind{Encoding::kBlocks, ListScope::kKvHead, 16, 32},
                        PlanKind{Encoding::kRuns, ListScope::kAllHeads, 8, 1},
                        PlanKind{Encoding::kTokens, ListScope::kQueryHead, 1, 1, 0, 0.2},
                        PlanKind{Encoding::kBlocks, ListScope::kKvHead, 1, 32, 50}}) {
    kind.scattered = true;
    for (int64_t queries : {1, 2, 65, 150}) {
      AttentionData a = MakeAttentionData(DataKind::kGaussian, 333, queries, 4, 2, 32, 32, 7);
      auto t = RandomPlan(kind, a, 9);
      ASSERT_TRUE(ValidateAttentionPlan(t->plan).ok()) << ValidateAttentionPlan(t->plan);
      const auto want = AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale());
      ExpectNear(RunPlan(t->plan, a, {}, 2), want, 2e-5, "query-major");
      AttendOptions kv;
      kv.mode = AttendMode::kKvMajor;
      if (kind.tile < 64)
        ExpectNear(RunPlan(t->plan, a, kv, 2), want, 2e-5, absl::StrCat("KV-major ", queries));
    }
  }
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 100, 10, 4, 2, 32, 32, 7);
  auto t = RandomPlan({Encoding::kRuns, ListScope::kKvHead, 8, 1}, a, 9);
  std::vector<int32_t> bad = {0, 1, 2, 3, 3, 5, 6, 7, 8, 9};
  t->plan.q_positions = bad;
  EXPECT_FALSE(ValidateAttentionPlan(t->plan).ok());
  bad[4] = 4;
  bad[9] = 100;
  EXPECT_FALSE(ValidateAttentionPlan(t->plan).ok());
}
TEST(Attend, SplitPlansMergeAndResume) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 64, 4, 2, 32, 48, 11);
  auto whole = RandomPlan({Encoding::kBlocks, ListScope::kKvHead, 64, 64, 0, 1.0}, a, 1);
  for (uint32_t& c : whole->count) c = 0;
  whole->entries.assign(8, PlanEntry{});
  for (size_t r = 0; r < 2; ++r) {
    whole->begin[r] = static_cast<int64_t>(4 * r);
    whole->count[r] = 4;
    for (uint32_t e = 0; e < 4; ++e)
      whole->entries[4 * r + e] = {e, 1, EntryState::kExact, MaskClass::kCausal, 0, 0};
  }
  whole->branches[0].entries = whole->entries;
  const Result all = RunPlan(whole->plan, a, {});
  const auto want = AttendReference(whole->plan, a.Q(), a.K(), a.V(), a.scale());
  ExpectNear(all, want, 2e-5, "whole");
  // Two branches of one softmax.
  std::vector<int64_t> first = {0, 4}, second = {1, 5};
  std::vector<uint32_t> one = {1, 1}, three = {3, 3};
  std::vector<AttentionBranch> two(2, whole->branches[0]);
  two[0].rows = {first, one};
  two[1].rows = {second, three};
  AttentionPlan p = whole->plan;
  p.branches = two;
  EXPECT_EQ(RunPlan(p, a, {}).o, all.o);
  // Two calls, the second resuming from the first.
  std::vector<float> m(64 * 4), l(64 * 4), o(64 * 4 * 48);
  SoftmaxState state{m.data(), l.data(), o.data()};
  p.branches = absl::MakeConstSpan(two).subspan(0, 1);
  const Result part1 = RunPlan(p, a, {}, 1, nullptr, &state);
  p.branches = absl::MakeConstSpan(two).subspan(1, 1);
  EXPECT_EQ(RunPlan(p, a, {}, 2, &state).o, all.o);
  // Two calls merged by log-sum-exp, with an empty third part.
  const Result part2 = RunPlan(p, a, {});
  std::vector<float> none(all.o.size(), 0), none_lse(all.lse.size(), -INFINITY),
      merged(all.o.size()), lse(all.lse.size());
  MergeAttention({part1.o.data(), none.data(), part2.o.data()},
                 {part1.lse.data(), none_lse.data(), part2.lse.data()}, 64 * 4, 48, merged.data(),
                 lse.data());
  for (size_t i = 0; i < merged.size(); ++i) EXPECT_NEAR(merged[i], want.o[i], 2e-5);
  for (size_t i = 0; i < lse.size(); ++i) EXPECT_NEAR(lse[i], want.lse[i], 2e-5);
}
TEST(Attend, WeightedSumWithInit) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 70, 4, 2, 32, 32, 13);
  auto x = RandomPlan({Encoding::kBlocks, ListScope::kKvHead, 32, 32, 0, 0.3}, a, 1),
       y = RandomPlan({Encoding::kRuns, ListScope::kKvHead, 32, 1, 0, 0.3}, a, 2);
  std::vector<AttentionBranch> branches = {x->branches[0], y->branches[0], x->branches[0]};
  branches[1].init_from = -1;
  AttentionPlan p = x->plan;
  p.branches = branches;
  p.merge = Merge::kWeightedSum;
  std::vector<float> w(3 * 70 * 4);
  for (size_t i = 0; i < w.size(); ++i) w[i] = 0.1f * static_cast<float>(i % 11) - 0.3f;
  p.branch_weight = w;
  const auto want = AttendReference(p, a.Q(), a.K(), a.V(), a.scale());
  ExpectNear(RunPlan(p, a, {}, 2), want, 2e-5, "weighted sum");
  std::vector<uint32_t> c1(y->count.size(), 0);
  for (size_t r = 0; r < c1.size(); ++r) c1[r] = y->count[r];
  branches[2].rows = {y->begin, c1};
  branches[2].entries = y->entries;
  branches[2].encoding = Encoding::kRuns;
  branches[2].init_from = 0;  // may share keys with branch 0: both then count, as the caller asked
  ExpectNear(RunPlan(p, a, {}), AttendReference(p, a.Q(), a.K(), a.V(), a.scale()), 2e-5, "init");
}
TEST(Attend, SummaryEntries) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 64, 4, 2, 32, 32, 17);
  for (int64_t s = 0; s < 64; ++s) {  // block 0 is constant, so its summary is exact
    for (int64_t x = 0; x < 64; ++x) {
      a.k[s * 64 + x] = a.k[x];
      a.v[s * 64 + x] = a.v[x];
    }
  }
  std::vector<float> mk(3 * 64, 0), mv(3 * 64, 0), log_count(3, std::log(64.0f));
  for (int64_t blk = 0; blk < 3; ++blk) {
    for (int64_t s = 0; s < 64; ++s) {
      for (int64_t x = 0; x < 64; ++x) {
        mk[blk * 64 + x] += a.k[(blk * 64 + s) * 64 + x] / 64;
        mv[blk * 64 + x] += a.v[(blk * 64 + s) * 64 + x] / 64;
      }
    }
  }
  std::vector<uint32_t> tb = {0, 64, 128}, tc = {64, 64, 64};
  SummaryTable table{{mk.data(), DType::kF32, 3, 2, 32, 64, 32},
                     {mv.data(), DType::kF32, 3, 2, 32, 64, 32},
                     log_count,
                     tb,
                     tc};
  auto t = RandomPlan({Encoding::kRuns, ListScope::kKvHead, 64, 1}, a, 1);
  const auto fill = [&](bool approx0, bool approx1) {
    t->entries.clear();
    for (size_t r = 0; r < 2; ++r) {
      t->begin[r] = std::ssize(t->entries);
      t->entries.push_back({0, approx0 ? 1u : 64u,
                            approx0 ? EntryState::kSummary : EntryState::kExact, MaskClass::kFull,
                            static_cast<uint8_t>(approx0), 0});
      t->entries.push_back({approx1 ? 1u : 64u, approx1 ? 1u : 64u,
                            approx1 ? EntryState::kSummary : EntryState::kExact, MaskClass::kFull,
                            static_cast<uint8_t>(approx1), 0});
      t->entries.push_back({128, 128, EntryState::kExact, MaskClass::kCausal, 0, 0});
      t->count[r] = 3;
    }
    t->branches[0].entries = t->entries;
    t->branches[0].order = EntryOrder::kPriority;
  };
  fill(false, false);
  const Result exact = RunPlan(t->plan, a, {});
  t->plan.tables = {&table, 1};
  fill(true, false);
  const Result same = RunPlan(t->plan, a, {}, 1);
  for (size_t i = 0; i < exact.o.size(); ++i) EXPECT_NEAR(same.o[i], exact.o[i], 2e-5);
  EXPECT_EQ(same.counters.summary_pairs, 64 * 4);
  fill(true, true);
  ASSERT_TRUE(ValidateAttentionPlan(t->plan).ok()) << ValidateAttentionPlan(t->plan);
  const Result rough = RunPlan(t->plan, a, {}, 2);
  ExpectNear(rough, AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale()), 2e-5, "approx");
  for (size_t i = 0; i < exact.lse.size(); ++i)
    EXPECT_LE(rough.lse[i], exact.lse[i] + 1e-5);  // Jensen
  t->plan.tables = {};
  EXPECT_FALSE(RunPlan(t->plan, a, {}).status.ok());  // the table is missing
}
TEST(Attend, StopRuleAndProbabilities) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 512, 32, 4, 2, 32, 32, 19);
  auto t = RandomPlan({Encoding::kBlocks, ListScope::kKvHead, 32, 64, 0, 1.0}, a, 3);
  t->branches[0].order = EntryOrder::kPriority;
  std::vector<float> probs;
  const Result all = RunPlan(t->plan, a, {}, 1, nullptr, nullptr, &probs);
  for (int64_t r = 0; r < 4 * 32; ++r) {
    double sum = 0;
    for (int64_t j = 0; j < 512; ++j) sum += probs[r * 512 + j];
    if (all.lse[(r % 32) * 4 + r / 32] > -INFINITY) {
      EXPECT_NEAR(sum, 1, 1e-4);
    }
  }
  t->branches[0].stop = StopRule::kGain;
  t->branches[0].stop_tau = 0.9f;
  const Result cut = RunPlan(t->plan, a, {});
  ASSERT_TRUE(cut.status.ok());
  EXPECT_LT(cut.counters.exact_pairs, all.counters.exact_pairs);
  EXPECT_GT(cut.counters.stopped_panels, 0);
  t->branches[0].stop_tau = 0;
  EXPECT_EQ(RunPlan(t->plan, a, {}).o, all.o);
}
TEST(Attend, ScopesReplicate) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 100, 4, 2, 32, 32, 23);
  auto all = RandomPlan({Encoding::kBlocks, ListScope::kAllHeads, 64, 32}, a, 4);
  auto each = RandomPlan({Encoding::kBlocks, ListScope::kQueryHead, 64, 32}, a, 4);
  each->begin.clear();
  each->count.clear();
  for (int h = 0; h < 4; ++h) {
    each->begin.insert(each->begin.end(), all->begin.begin(), all->begin.end());
    each->count.insert(each->count.end(), all->count.begin(), all->count.end());
  }
  each->branches[0].rows = {each->begin, each->count};
  each->branches[0].entries = all->entries;
  EXPECT_EQ(RunPlan(all->plan, a, {}).o, RunPlan(each->plan, a, {}).o);
}
// Patterns of every kind, of single keys and of blocks, per list.
std::vector<std::vector<PatternTerm>> Patterns() {
  PatternTerm box1 = {.kind = PatternKind::kBox, .dims = 1};
  box1.extent[0] = 150;
  box1.window[0] = 31;
  box1.stride[0] = 7;
  box1.dilation[0] = 3;
  PatternTerm box2 = {.kind = PatternKind::kBox, .dims = 2};
  box2.extent[0] = 10;
  box2.extent[1] = 15;
  box2.window[0] = 5;
  box2.window[1] = 4;
  box2.stride[1] = 2;
  PatternTerm causal = box2;
  causal.a = 3;
  PatternTerm box3 = {.kind = PatternKind::kBox, .dims = 3};
  for (int x = 0; x < 3; ++x) {
    box3.extent[x] = 6;
    box3.window[x] = 3;
  }
  box3.dilation[0] = 2;
  const PatternTerm sink = {.kind = PatternKind::kSink, .a = 5};
  const PatternTerm band = {.kind = PatternKind::kBand, .a = 17};
  return {{sink, band},
          {{.kind = PatternKind::kBand, .a = -3 + 4, .slope = 0.3}},
          {{.kind = PatternKind::kStrideAbsolute, .a = 7, .b = 3}, band},
          {{.kind = PatternKind::kStrideRelative, .a = 9, .b = 4}},
          {{.kind = PatternKind::kStrideRelative, .a = 90, .b = 1}, sink},
          {{.kind = PatternKind::kPowersOfTwo}, sink, {.kind = PatternKind::kBand, .a = 2}},
          {{.kind = PatternKind::kDilated, .a = 6, .b = 11}},
          {{.kind = PatternKind::kDilated, .a = 3, .b = 70}, sink},
          {box1},
          {box2},
          {causal},
          {box3},
          {}};
}
TEST(Attend, StaticPatternsInClosedForm) {
  const auto patterns = Patterns();
  for (size_t i = 0; i < patterns.size(); ++i) {
    for (int64_t block : {1, 16}) {
      for (MaskClass mask : {MaskClass::kCausal, MaskClass::kLowerBound, MaskClass::kNone}) {
        for (int64_t queries : {150, 40, 1}) {
          AttentionData a =
              MakeAttentionData(DataKind::kGaussian, 150, queries, 4, 2, 16, 16, 3 + i);
          TestPlan t;
          std::vector<PatternTerm> terms = patterns[i];
          const auto own = static_cast<int32_t>(terms.size());
          const auto& next = patterns[(i + 1) % patterns.size()];
          terms.insert(terms.end(), next.begin(), next.end());
          const std::vector<int32_t> begin = {0, own, static_cast<int32_t>(terms.size())};
          AttentionBranch& b = t.branches[0];
          b.encoding = Encoding::kPattern;
          b.block = block;
          b.tile = 32;
          b.num_tiles = (queries + 31) / 32;
          b.num_lists = 2;
          b.token_mask = mask;
          b.window = 45;
          b.terms = terms;
          b.term_begin = begin;
          AttentionPlan& p = t.plan;
          p.q_begin = a.q_begin();
          p.q_count = queries;
          p.kv_len = 150;
          p.heads = 4;
          p.kv_heads = 2;
          p.branches = t.branches;
          const auto want = AttendReference(p, a.Q(), a.K(), a.V(), a.scale());
          ExpectNear(RunPlan(p, a, {}, 2), want, 2e-5,
                     absl::StrCat("pattern ", i, " block ", block, " queries ", queries));
        }
      }
    }
  }
}

// Plans that a fuzzer found to overflow, or to write beside the states of their slots.
TEST(Attend, PlansThatCannotRunAreRefused) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 40, 8, 4, 2, 16, 16, 3);
  const auto status = [&](const std::function<void(AttentionPlan&, AttentionBranch&)>& spoil) {
    auto t = RandomPlan({Encoding::kTokens, ListScope::kKvHead, 4, 1, 0, 0.5}, a, 5);
    spoil(t->plan, t->branches[0]);
    return std::string(CheckPlanBounds(t->plan).message());
  };
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(status([](AttentionPlan&, AttentionBranch&) {}), "");
  EXPECT_THAT(status([](AttentionPlan& p, AttentionBranch&) { p.merge = Merge::kMean; }),
              testing::HasSubstr("order of their own"));
  EXPECT_THAT(status([](AttentionPlan& p, AttentionBranch&) { p.q_begin = kMost; }),
              testing::HasSubstr("queries from"));
  EXPECT_THAT(status([](AttentionPlan&, AttentionBranch& b) { b.tile = kMost; }),
              testing::HasSubstr("tile"));
  EXPECT_THAT(status([](AttentionPlan&, AttentionBranch& b) { b.block = kMost; }),
              testing::HasSubstr("block"));
  EXPECT_THAT(status([](AttentionPlan&, AttentionBranch& b) { b.window = -1; }),
              testing::HasSubstr("window"));

  const std::vector<int32_t> begin = {0, 1, 1};
  const auto term = [&](PatternTerm t) {
    return status([&](AttentionPlan&, AttentionBranch& b) {
      b.encoding = Encoding::kPattern;
      b.terms = absl::MakeConstSpan(&t, 1);
      b.term_begin = begin;
    });
  };
  EXPECT_EQ(term({.kind = PatternKind::kBand, .a = 3, .slope = 0.5}), "");
  EXPECT_THAT(term({.kind = PatternKind::kBand, .a = 3, .slope = 1e300}),
              testing::HasSubstr("slope"));
  EXPECT_THAT(term({.kind = PatternKind::kDilated, .a = kMost, .b = 2}),
              testing::HasSubstr("pattern term"));
  EXPECT_THAT(term({.kind = PatternKind::kStrideAbsolute, .a = 2, .b = kMost}),
              testing::HasSubstr("pattern term"));
  constexpr int32_t kWide = std::numeric_limits<int32_t>::max();
  EXPECT_THAT(term({.kind = PatternKind::kBox,
                    .dims = 3,
                    .extent = {kWide, kWide, kWide},
                    .window = {1, 1, 1}}),
              testing::HasSubstr("points"));
  std::vector<uint32_t> perm(40);
  EXPECT_THAT(status([&](AttentionPlan& p, AttentionBranch& b) {
                const PatternTerm sink = {.kind = PatternKind::kSink, .a = 5};
                p.key_perm = perm;
                p.perm_scope = ListScope::kAllHeads;
                b.encoding = Encoding::kPattern;
                b.terms = absl::MakeConstSpan(&sink, 1);
                b.term_begin = begin;
              }),
              testing::HasSubstr("permuted"));
}

// A branch whose tiles hold queries in an order of their own, of uneven sizes, differing by list.
struct Ordered {
  std::vector<int32_t> order;
  std::vector<int64_t> tile_begin;
  void Apply(AttentionBranch& b, int64_t queries, bool twice, unsigned seed) {
    std::mt19937 g(seed);
    const int64_t slots = twice ? queries + 20 : queries;
    for (int64_t l = 0; l < b.num_lists; ++l) {
      std::vector<int32_t> own;
      for (int64_t i = 0; i < queries; ++i) own.push_back(static_cast<int32_t>(i));
      if (twice) own.erase(own.begin() + 3);  // one query in no tile, others in two
      while (std::ssize(own) < slots) own.push_back(static_cast<int32_t>(g() % queries));
      if (twice && std::ranges::count(own, 3) > 0) std::ranges::replace(own, 3, 4);
      std::shuffle(own.begin(), own.end(), g);
      order.insert(order.end(), own.begin(), own.end());
      std::vector<int64_t> cuts = {0};
      for (int64_t t = 1; t < b.num_tiles; ++t)
        cuts.push_back(std::min(slots, cuts.back() + static_cast<int64_t>(g() % (b.tile + 1))));
      cuts.push_back(std::min(slots, cuts.back() + b.tile));
      tile_begin.insert(tile_begin.end(), cuts.begin(), cuts.end());
    }
    b.q_order = order;
    b.tile_begin = tile_begin;
    b.order_slots = slots;
  }
};
TEST(Attend, OwnQueryOrdersAndMeansOverMemberships) {
  for (ListScope scope : {ListScope::kQueryHead, ListScope::kKvHead, ListScope::kAllHeads}) {
    for (bool twice : {false, true}) {
      AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 90, 4, 2, 16, 24, 31);
      auto t = RandomPlan({Encoding::kTokens, scope, 16, 1, 0, 0.3}, a, 5);
      Ordered own;
      own.Apply(t->branches[0], 90, twice, 7);
      if (twice) t->plan.merge = Merge::kMean;
      t->plan.branches = t->branches;
      ASSERT_TRUE(CheckPlanBounds(t->plan).ok()) << CheckPlanBounds(t->plan);
      const auto want = AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale());
      ExpectNear(RunPlan(t->plan, a, {}, 1), want, 2e-5, "one worker");
      EXPECT_EQ(RunPlan(t->plan, a, {}, 1).o, RunPlan(t->plan, a, {}, 4).o);
    }
  }
}
TEST(Attend, BranchesOfDifferentTilesAndScopes) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 90, 4, 2, 16, 24, 41);
  auto x = RandomPlan({Encoding::kBlocks, ListScope::kKvHead, 32, 16, 0, 0.3}, a, 1);
  auto y = RandomPlan({Encoding::kTokens, ListScope::kQueryHead, 1, 1, 0, 0.2}, a, 2);
  auto z = RandomPlan({Encoding::kRuns, ListScope::kAllHeads, 64, 1, 0, 0.2}, a, 3);
  std::vector<AttentionBranch> branches = {x->branches[0], y->branches[0], z->branches[0]};
  std::vector<float> weights(3 * 90 * 4);
  for (size_t i = 0; i < weights.size(); ++i)
    weights[i] = 0.05f * static_cast<float>(i % 17) - 0.2f;
  AttentionPlan p = x->plan;
  p.branches = branches;
  ExpectNear(RunPlan(p, a, {}, 2), AttendReference(p, a.Q(), a.K(), a.V(), a.scale()), 2e-5, "lse");
  p.merge = Merge::kWeightedSum;
  p.branch_weight = weights;
  ExpectNear(RunPlan(p, a, {}, 2), AttendReference(p, a.Q(), a.K(), a.V(), a.scale()), 2e-5, "sum");
  branches[2].init_from = 1;
  p.branches = branches;
  ExpectNear(RunPlan(p, a, {}, 2), AttendReference(p, a.Q(), a.K(), a.V(), a.scale()), 2e-5,
             "init");
}
// A branch goes on from an earlier one for every query, also for those that stand in none of its
// own tiles.
TEST(Attend, QueriesOutsideABranchKeepTheStateItStartedFrom) {
  for (bool none : {false, true}) {
    AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 90, 4, 2, 16, 24, 33);
    auto x = RandomPlan({Encoding::kTokens, ListScope::kQueryHead, 1, 1, 0, 0.2}, a, 1);
    auto y = RandomPlan({Encoding::kTokens, ListScope::kKvHead, 16, 1, 0, 0.3}, a, 5);
    Ordered own;
    own.Apply(y->branches[0], 90, false, 7);
    std::vector<AttentionBranch> branches = {x->branches[0], y->branches[0], y->branches[0]};
    for (int64_t l = 0; l < y->branches[0].num_lists; ++l) {
      for (int64_t tile = 0; tile <= y->branches[0].num_tiles; ++tile) {
        int64_t& begin = own.tile_begin[l * (y->branches[0].num_tiles + 1) + tile];
        begin = none ? 0 : std::min<int64_t>(begin, 40);
      }
    }
    branches[1].init_from = 0;
    branches[2].init_from = 1;
    for (AttentionBranch& b : branches) {
      if (!b.q_order.empty()) b.tile_begin = own.tile_begin;
    }
    std::vector<float> weights(3 * 90 * 4);
    for (size_t i = 0; i < weights.size(); ++i)
      weights[i] = 0.05f * static_cast<float>(i % 17) - 0.2f;
    AttentionPlan p = x->plan;
    p.branches = branches;
    p.merge = Merge::kWeightedSum;
    p.branch_weight = weights;
    ASSERT_TRUE(CheckPlanBounds(p).ok()) << CheckPlanBounds(p);
    ExpectNear(RunPlan(p, a, {}, 2), AttendReference(p, a.Q(), a.K(), a.V(), a.scale()), 2e-5,
               "outside");
  }
}
TEST(Attend, PermutationsOfHeads) {
  for (ListScope perm : {ListScope::kQueryHead, ListScope::kKvHead}) {
    AttentionData a = MakeAttentionData(DataKind::kGaussian, 160, 64, 4, 2, 16, 16, 51);
    auto t = RandomPlan(
        {Encoding::kBlocks, ListScope::kKvHead, 32, 16, 0, 0.5, false, false, false, true}, a, 5);
    std::vector<uint32_t> all;
    std::mt19937 g(3);
    for (int64_t l = 0; l < NumLists(perm, 4, 2); ++l) {
      std::shuffle(t->kperm.begin(), t->kperm.end(), g);
      all.insert(all.end(), t->kperm.begin(), t->kperm.end());
    }
    t->plan.key_perm = all;
    t->plan.perm_scope = perm;
    ASSERT_TRUE(ValidateAttentionPlan(t->plan).ok()) << ValidateAttentionPlan(t->plan);
    ExpectNear(RunPlan(t->plan, a, {}, 2), AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale()),
               2e-5, "permuted");
  }
}
// Rows that share a list give what rows with lists of their own give, and a row outside the storage
// is refused.
TEST(Attend, RowsMayShareAList) {
  const AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 64, 4, 2, 32, 32, 5);
  PlanLayout layout;
  layout.max_tile = 16;
  layout.AddBranch({.rows = 8, .token_slots = 60});
  auto storage = *PlanStorage::Create(layout);
  const BranchSpec spec = {.encoding = Encoding::kTokens, .tile = 16};
  const auto begin = [&] { storage->Begin(a.q_begin(), 64, 200, 4, 2); };
  begin();
  BranchWriter own = *storage->AddBranch(spec);
  for (int64_t row = 0; row < 8; ++row) {
    for (int64_t j = 0; j < 50; ++j) own.tokens(row)[j] = static_cast<uint32_t>(j * 2 + row / 4);
    own.set_count(row, 50);
  }
  const ReferenceAttention want = AttendReference(storage->plan(), a.Q(), a.K(), a.V(), a.scale());
  begin();
  BranchWriter shared = *storage->AddBranch(spec);
  for (int64_t kv = 0; kv < 2; ++kv) {
    for (int64_t j = 0; j < 50; ++j)
      shared.tokens(0)[kv * 50 + j] = static_cast<uint32_t>(j * 2 + kv);
    for (int64_t tile = 0; tile < 4; ++tile) shared.set_row(shared.row_of(kv, tile), kv * 50, 50);
  }
  ASSERT_TRUE(storage->Adopt({}).ok());
  ASSERT_TRUE(ValidateAttentionPlan(storage->plan()).ok());
  const ReferenceAttention got = AttendReference(storage->plan(), a.Q(), a.K(), a.V(), a.scale());
  EXPECT_EQ(got.o, want.o);
  ExpectNear(RunPlan(storage->plan(), a, {}), want, 2e-5, "shared lists");
  for (int64_t begin : {int64_t{8 * 60 - 49}, int64_t{8 * 60 + 1}, int64_t{-1},
                        std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()}) {
    shared.set_row(0, begin, 50);
    ASSERT_TRUE(storage->Adopt({}).ok());
    EXPECT_FALSE(CheckPlanBounds(storage->plan()).ok()) << begin;
  }
}
TEST(Attend, StopByScoreLeavesTheRestOut) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 256, 16, 2, 2, 16, 16, 61);
  auto t = RandomPlan({Encoding::kBlocks, ListScope::kKvHead, 16, 16, 0, 1.0}, a, 3);
  AttentionBranch& b = t->branches[0];
  for (size_t i = 0; i < t->entries.size(); ++i)
    t->entry_bias.push_back(1.0f / static_cast<float>(1 + i));
  b.entry_bias = t->entry_bias;
  b.order = EntryOrder::kPriority;
  b.stop = StopRule::kScore;
  b.stop_tau = 0;
  t->plan.branches = t->branches;
  const Result all = RunPlan(t->plan, a, {});
  ExpectNear(all, AttendReference(t->plan, a.Q(), a.K(), a.V(), a.scale()), 2e-5,
             "scores are no bias");
  t->branches[0].stop_tau = 0.2f;
  t->plan.branches = t->branches;
  const Result cut = RunPlan(t->plan, a, {});
  ASSERT_TRUE(cut.status.ok());
  EXPECT_LT(cut.counters.exact_pairs, all.counters.exact_pairs);
  EXPECT_GT(cut.counters.stopped_panels, 0);
}
TEST(Attend, FeedbackIsTheSumOfProbabilities) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 300, 90, 4, 2, 16, 24, 71);
  auto x = RandomPlan({Encoding::kBlocks, ListScope::kKvHead, 32, 16, 0, 0.3}, a, 1);
  auto y = RandomPlan({Encoding::kTokens, ListScope::kQueryHead, 1, 1, 0, 0.2}, a, 2);
  for (bool phased : {false, true}) {
    std::vector<AttentionBranch> branches = {x->branches[0]};
    if (phased) branches.push_back(y->branches[0]);
    AttentionPlan p = x->plan;
    p.branches = branches;
    const auto want = AttendReference(p, a.Q(), a.K(), a.V(), a.scale());
    std::vector<float> first;
    for (int threads : {1, 3}) {
      AttendShape s = {.max_queries = 90,
                       .max_kv = 300,
                       .heads = 4,
                       .kv_heads = 2,
                       .head_dim = 16,
                       .value_dim = 24,
                       .max_branches = 2,
                       .workers = threads};
      const Attend attend = *Attend::Create(s, {.feedback = true});
      OwnedWorkspace ws(attend.workspace_bytes());
      std::unique_ptr<Executor> ex = MakeTbbExecutor(threads);
      std::vector<float> o(90 * 4 * 24), mass(4 * 300), norm(4), row_max(90 * 4);
      AttendOutputs out;
      out.o = {o.data(), 90, 4, 24, 96, 24};
      out.feedback = {mass.data(), norm.data(), row_max.data()};
      const absl::Status status =
          attend.Run(p, {.q = a.Q(), .k = a.K(), .v = a.V(), .scale = a.scale()},
                     {.workspace = ws.workspace(), .executor = ex.get()}, out);
      ASSERT_TRUE(status.ok()) << status;
      for (size_t i = 0; i < mass.size(); ++i) EXPECT_NEAR(mass[i], want.key_mass[i], 1e-4);
      for (size_t i = 0; i < row_max.size(); ++i) EXPECT_NEAR(row_max[i], want.row_max[i], 1e-4);
      double norms[4] = {};
      for (int64_t i = 0; i < 90 * 4 * 24; ++i) norms[i / 24 % 4] += std::abs(want.o[i]);
      for (int h = 0; h < 4; ++h) EXPECT_NEAR(norm[h], norms[h], 1e-2);
      if (first.empty()) first = mass;
      EXPECT_EQ(first, mass) << threads;
    }
  }
}

// Which outputs are NaN when one input is: those that see it, and no others.
void ExpectNanWhereSeen(DType type, kernels::Bf16Unit unit) {
  for (bool infinite : {false, true}) {
    const float bad = infinite ? INFINITY : NAN;
    AttendOptions options;
    options.bf16 = unit;
    for (int where = 0; where < 3; ++where) {  // q, k, v
      AttentionData a = MakeAttentionData(DataKind::kGaussian, 200, 200, 2, 2, 16, 16, 81);
      if (type != DType::kF32) a.Convert(type);
      auto t = RandomPlan({Encoding::kRuns, ListScope::kKvHead, 64, 1, 0, 1.0}, a, 3);
      for (uint32_t& c : t->count) c = 1;
      t->entries.assign(t->begin.size(),
                        PlanEntry{0, 200, EntryState::kExact, MaskClass::kCausal, 0, 0});
      for (size_t r = 0; r < t->begin.size(); ++r) t->begin[r] = static_cast<int64_t>(r);
      t->branches[0].rows = {t->begin, t->count};
      t->branches[0].entries = t->entries;
      t->plan.branches = t->branches;
      const int64_t key = 100, element = (key * 2 + 1) * 16 + 5;
      std::vector<float>& x = where == 0 ? a.q : where == 1 ? a.k : a.v;
      x[element] = bad;
      if (type != DType::kF32 && where > 0) {
        std::vector<uint32_t>& raw = where == 1 ? a.kraw : a.vraw;
        reinterpret_cast<uint16_t*>(raw.data())[element] = F32ToBF16(bad);
      }
      const Result r = RunPlan(t->plan, a, options);
      ASSERT_TRUE(r.status.ok());
      for (int64_t i = 0; i < 200; ++i) {
        for (int64_t h = 0; h < 2; ++h) {
          const bool sees = h == 1 && (where == 0 ? i == key : i >= key);
          bool finite = true;
          for (int64_t d = 0; d < 16; ++d)
            finite = finite && std::isfinite(r.o[(i * 2 + h) * 16 + d]);
          // An infinite key may also lose every row: its logit is -inf where the query is
          // negative.
          if (sees && !(infinite && where == 1)) {
            EXPECT_FALSE(finite) << DTypeName(type) << " where " << where << " query " << i;
          }
          if (!sees) {
            EXPECT_TRUE(finite) << DTypeName(type) << " where " << where << " query " << i;
          }
        }
      }
    }
  }
}
TEST(Attend, NanGoesWhereItIsSeen) {
  for (DType type : {DType::kF32, DType::kBF16}) {
    for (kernels::Bf16Unit unit : UnitsFor(type)) {
      SCOPED_TRACE(absl::StrCat("unit ", static_cast<int>(unit)));
      ExpectNanWhereSeen(type, unit);
    }
  }
}
TEST(Attend, NanScaleAndKeysThatWeighNothing) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 100, 20, 4, 2, 16, 16, 91);
  auto t = RandomPlan({Encoding::kRuns, ListScope::kKvHead, 64, 1, 0, 1.0}, a, 3);
  for (int64_t i = 0; i < a.kv_heads * a.kv_len; ++i) t->key_bias.push_back(-INFINITY);
  t->plan.key_bias = t->key_bias;
  const Result none = RunPlan(t->plan, a, {});
  ASSERT_TRUE(none.status.ok());
  for (float x : none.o) EXPECT_EQ(x, 0);
  for (float x : none.lse) EXPECT_EQ(x, -INFINITY);
  t->key_bias[7] = 0;  // one key of the first KV head weighs something: the output is its value
  t->plan.key_bias = t->key_bias;
  const Result one = RunPlan(t->plan, a, {});
  for (int64_t d = 0; d < 16; ++d) EXPECT_NEAR(one.o[d], a.v[7 * 32 + d], 1e-6);
  t->key_bias[7] = NAN;
  t->plan.key_bias = t->key_bias;
  EXPECT_TRUE(std::isnan(RunPlan(t->plan, a, {}).o[0]));
}
TEST(Attend, IdsAndSizesOutOfRangeAreRefused) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 8, 2, 2, 16, 16, 5);
  auto t = RandomPlan({Encoding::kTokens, ListScope::kAllHeads, 1, 1, 0, 0.5}, a, 3);
  for (uint32_t bad : {64u, 200000u, 0xFFFFFFFFu}) {
    auto u = RandomPlan({Encoding::kTokens, ListScope::kAllHeads, 1, 1, 0, 0.5}, a, 3);
    u->tokens[3] = bad;
    u->branches[0].tokens = u->tokens;
    u->plan.branches = u->branches;
    const absl::Status s = RunPlan(u->plan, a, {}).status;
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(s.message()), testing::HasSubstr(absl::StrCat("names key ", bad)));
  }
  auto blocks = RandomPlan({Encoding::kBlocks, ListScope::kKvHead, 8, 16, 0, 1.0}, a, 3);
  for (PlanEntry bad : {PlanEntry{4, 1}, PlanEntry{0, 5}, PlanEntry{0xFFFFFFFF, 0xFFFFFFFF}}) {
    blocks->entries[0] = bad;
    blocks->branches[0].entries = blocks->entries;
    blocks->plan.branches = blocks->branches;
    EXPECT_FALSE(RunPlan(blocks->plan, a, {}).status.ok());
  }
  constexpr int64_t kHuge = int64_t{1} << 62;
  const AttendShape good = {
      .max_queries = 1, .max_kv = 1, .heads = 1, .kv_heads = 1, .head_dim = 64, .value_dim = 64};
  for (int64_t AttendShape::*field : {&AttendShape::max_queries, &AttendShape::max_kv,
                                      &AttendShape::max_tile, &AttendShape::max_slots}) {
    AttendShape huge = good;
    huge.*field = kHuge;
    EXPECT_FALSE(Attend::Create(huge).ok());
    huge.*field = -1;
    EXPECT_FALSE(Attend::Create(huge).ok());
  }
  for (float cap : {NAN, -1.0f, INFINITY})
    EXPECT_FALSE(Attend::Create(good, {.softcap = cap}).ok());
}
TEST(Attend, ErrorsSayWhatWasGiven) {
  AttentionData a = MakeAttentionData(DataKind::kGaussian, 64, 64, 4, 2, 32, 32, 1);
  auto t = RandomPlan({}, a, 1);
  AttentionPlan p = t->plan;
  p.heads = 8;
  EXPECT_THAT(std::string(RunPlan(p, a, {}).status.message()), testing::HasSubstr("8/2 heads"));
  EXPECT_FALSE(
      Attend::Create(
          {.max_queries = 1, .max_kv = 1, .heads = 3, .kv_heads = 2, .head_dim = 1, .value_dim = 1})
          .ok());
  AttendOptions kv;
  kv.mode = AttendMode::kKvMajor;
  t->key_bias.assign(128, 0);
  t->plan.key_bias = t->key_bias;
  EXPECT_EQ(RunPlan(t->plan, a, kv).status.code(), absl::StatusCode::kUnimplemented);
}
}  // namespace attend_test
SLUICE_END_NAMESPACE
