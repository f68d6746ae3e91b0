#ifndef SLUICE_TESTS_SUPPORT_ROUTER_REFERENCE_H_
#define SLUICE_TESTS_SUPPORT_ROUTER_REFERENCE_H_
// Compares the lists of an attention policy with those of a method's reference.
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
struct ReferenceCase {
  DataKind kind = DataKind::kGaussian;
  int64_t kv = 0;
  int64_t q = 0;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t d = 32;
  int64_t chunk = 0;        // as HarnessOptions
  int64_t first_chunk = 0;  // as HarnessOptions
  DType dtype = DType::kF32;

  AttentionData Data(uint64_t seed) const {
    AttentionData a = MakeAttentionData(kind, kv, q, heads, kv_heads, d, 24, seed);
    if (dtype != DType::kF32) a.Convert(dtype);
    return a;
  }
  HarnessOptions Options() const {
    HarnessOptions o;
    o.chunk = chunk;
    o.first_chunk = first_chunk;
    return o;
  }
};
inline std::vector<ReferenceCase> ReferenceCases() {
  return {
      {.kind = DataKind::kNeedles, .kv = 300, .q = 300},
      {.kind = DataKind::kGaussian, .kv = 237, .q = 77, .heads = 6, .d = 64},
      {.kind = DataKind::kClustered, .kv = 413, .q = 130, .kv_heads = 1, .d = 128, .chunk = 64},
      // Chunks that begin inside a block and inside a tile.
      {.kind = DataKind::kNeedles, .kv = 331, .q = 131, .heads = 2, .chunk = 48, .first_chunk = 21},
      {.kind = DataKind::kSinkRecent, .kv = 300, .q = 1, .d = 40},
      {.kind = DataKind::kNeedles, .kv = 290, .q = 9, .chunk = 1},
      {.kind = DataKind::kGaussian, .kv = 270, .q = 90, .dtype = DType::kBF16},
      {.kind = DataKind::kGaussian, .kv = 1, .q = 1},
  };
}

// Rounds to whole numbers, whose products are exact in single precision too, and has blocks of keys
// repeat earlier ones: scores then tie exactly.
inline AttentionData WithTies(AttentionData a, int64_t block) {
  for (float& x : a.q) x = std::nearbyint(x);
  for (float& x : a.k) x = std::nearbyint(x);
  const int64_t width = a.kv_heads * a.d;
  for (int64_t s = 3 * block; s < a.kv_len; ++s) {
    if (s / block % 2 == 1) std::copy_n(&a.k[(s - 3 * block) * width], width, &a.k[s * width]);
  }
  return a;
}

// A random token indexer over the data: queries, signed weights and keys of its own.
struct IndexData {
  std::vector<float> q, w, k;

  void Attach(SessionOptions& s, AttentionInputs& in, int64_t heads, int64_t dim) {
    const auto fill = [&](std::vector<float>& x, int64_t n, uint64_t unit) {
      for (int64_t i = 0; i < n; ++i)
        x.push_back(static_cast<float>(RandomNormal({5, 0, 0, unit, static_cast<uint64_t>(i)})));
    };
    if (q.empty()) {
      fill(q, in.q.rows * heads * dim, 1);
      fill(w, in.q.rows * heads, 2);
      fill(k, in.k.rows * dim, 3);
    }
    s.index_heads = static_cast<int>(heads);
    s.index_dim = static_cast<int>(dim);
    in.index.q = {q.data(), in.q.rows, heads, dim, heads * dim, dim};
    in.index.weight = {w.data(), in.q.rows, heads, heads};
    in.index.k = {k.data(), DType::kF32, in.k.rows, 1, dim, dim, dim};
  }
};

// The data with a NaN in one number of the queries, in one of the keys, and in all of the queries.
inline std::vector<AttentionData> WithNans(const AttentionData& clean, int64_t query, int64_t key) {
  std::vector<AttentionData> all(3, clean);
  all[0].q[query] = NAN;
  all[1].k[key] = NAN;
  std::fill(all[2].q.begin(), all[2].q.end(), NAN);
  return all;
}
// The data with other keys after the first `kept` queries' own.
inline AttentionData WithOtherKeysAfter(const AttentionData& a, int64_t kept) {
  AttentionData after = a;
  const int64_t row = a.kv_heads * a.d;
  std::fill(after.k.begin() + (a.q_begin() + kept) * row, after.k.end(), 90.0f);
  return after;
}
// The first `queries` queries have the same lists of both.
inline void ExpectFirstListsAlike(const std::string& policy, const AttentionData& a,
                                  const AttentionData& b, int64_t queries) {
  const RoutedRun x = RunRouter(policy, a);
  const RoutedRun y = RunRouter(policy, b);
  ASSERT_TRUE(x.status.ok() && y.status.ok());
  for (int64_t i = 0; i < queries * a.heads; ++i)
    EXPECT_EQ(x.lists[i], y.lists[i]) << policy << ": position " << a.q_begin() + i / a.heads;
}

// Runs a policy as `o` says; every query's list must be the reference's of the same call.
template <class Reference>
void ExpectListsOf(const Reference& reference, const std::string& policy, const AttentionData& a,
                   const HarnessOptions& o = {}) {
  const RoutedRun run = RunRouter(policy, a, o);
  ASSERT_TRUE(run.status.ok()) << policy << ": " << run.status;
  AttentionInputs whole = a.Inputs();
  SessionOptions session;
  if (o.adjust) o.adjust(session, whole);

  const int64_t chunk = o.chunk > 0 ? o.chunk : a.q_count;
  int64_t n = o.first_chunk > 0 ? o.first_chunk : chunk;
  for (int64_t at = 0; at < a.q_count; at += n, n = chunk) {
    n = std::min(n, a.q_count - at);
    const std::vector<std::vector<uint32_t>> want = reference.Lists(ChunkOf(whole, at, n));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t h = 0; h < a.heads; ++h) {
        ASSERT_EQ(run.lists[(at + i) * a.heads + h], want[i * a.heads + h])
            << policy << " of " << a.kv_len << " keys: query " << at + i << ", head " << h;
      }
    }
  }
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_ROUTER_REFERENCE_H_
