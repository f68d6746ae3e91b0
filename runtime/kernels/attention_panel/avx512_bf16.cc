// The attention panel on AVX512-BF16 dot products, for CPUs without AMX (Zen 4 and later, Cooper
// Lake). Highway 1.0.3 has none, so this file uses intrinsics; it is compiled for the instruction
// set that it checks for at run time, and nothing here runs before that check.
#include "sluice/runtime/kernels/attention_panel/bf16_avx512.h"

#if defined(__x86_64__) && defined(__AVX512BF16__)
#include <cpuid.h>

namespace sluice::kernels {
namespace {
// Rows of one register block. With 64 columns: 24 sums, 4 vectors of b and one pair of a.
constexpr int64_t kBlockRows = 6;
// Rows worked on at once: whole blocks and whole sixteens of the softmax.
constexpr int64_t kGroupRows = 48;

bool CpuHasDotProducts() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
}

// Logits and probabilities (bf16) of one group of rows.
int64_t ScratchFloats(int64_t /*rows*/, int64_t /*dv*/) {
  return kGroupRows * kPanelKeys + kGroupRows * kPanelKeys / 2;
}

// A product of bf16 matrices: c [rows, 16 * vectors] (+)= a [rows, 2 * pairs] b, where b is in
// tiles of 16 pairs and 16 columns, `groups` tiles to a row of tiles. Every element sums its pairs
// in rising order, so a row's bits do not depend on how rows were blocked.
struct Product {
  const uint16_t* a;
  int64_t lda;
  const uint16_t* b;
  int64_t groups;
  int64_t pairs;
  float* c;
  int64_t ldc;
  bool accumulate;
};

template <int kRows, int kVectors>
void Block(const Product& product) {
  const Product x = product;  // of its own, so that stores to c cannot change it
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i)
      sum[r][i] = x.accumulate ? _mm512_loadu_ps(x.c + r * x.ldc + 16 * i) : _mm512_setzero_ps();
  }
  for (int64_t p0 = 0; p0 < x.pairs; p0 += 16) {
    const uint16_t* b = x.b + p0 / 16 * x.groups * kTileWords * 2;
    const uint16_t* a = x.a + p0 * 2;
    const int64_t end = x.pairs - p0 < 16 ? x.pairs - p0 : 16;
    for (int64_t p = 0; p < end; ++p) {
      __m512i column[kVectors];
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i)
        column[i] = _mm512_loadu_si512(b + (i * kTileWords + p * 16) * 2);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int32_t pair;
        std::memcpy(&pair, a + r * x.lda + 2 * p, sizeof pair);
        const __m512i all = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i)
          sum[r][i] = _mm512_dpbf16_ps(sum[r][i], (__m512bh)all, (__m512bh)column[i]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(x.c + r * x.ldc + 16 * i, sum[r][i]);
  }
}

template <int kVectors>
void Rows(Product x, int64_t rows) {
  for (; rows >= kBlockRows; rows -= kBlockRows) {
    Block<kBlockRows, kVectors>(x);
    x.a += kBlockRows * x.lda;
    x.c += kBlockRows * x.ldc;
  }
  switch (rows) {
    case 1:
      return Block<1, kVectors>(x);
    case 2:
      return Block<2, kVectors>(x);
    case 3:
      return Block<3, kVectors>(x);
    case 4:
      return Block<4, kVectors>(x);
    case 5:
      return Block<5, kVectors>(x);
    default:
      return;
  }
}

// Columns in fours of vectors, and what is left.
void Multiply(Product x, int64_t rows) {
  int64_t g = 0;
  for (; g + 4 <= x.groups; g += 4) {
    Rows<4>(x, rows);
    x.b += 4 * kTileWords * 2;
    x.c += 4 * 16;
  }
  switch (x.groups - g) {
    case 1:
      return Rows<1>(x, rows);
    case 2:
      return Rows<2>(x, rows);
    case 3:
      return Rows<3>(x, rows);
    default:
      return;
  }
}

// Probabilities [rows, 64] of the logits s of rows [r0, r0 + rows).
void Soften(SoftmaxRows& softmax, int64_t r0, int64_t rows, float* s, uint16_t* prob) {
  for (int64_t r = 0; r < rows; r += 16) {
    softmax.FindTops(r0 + r, s + r * kPanelKeys);
    const int64_t some = rows - r < 16 ? rows - r : 16;
    for (int64_t i = 0; i < some; ++i)
      softmax.Exponentiate(s + r * kPanelKeys, prob + r * kPanelKeys, i);
    softmax.AddSums(r0 + r);
  }
}

float Attend(const AttentionPanel& p, const uint16_t* q, const uint16_t* k, const uint16_t* v) {
  const int64_t dp = Up(p.d, 32);
  float* logits = p.scratch;
  uint16_t* prob = reinterpret_cast<uint16_t*>(p.scratch + kGroupRows * kPanelKeys);
  SoftmaxRows softmax(p);
  for (int64_t r0 = 0; r0 < p.rows; r0 += kGroupRows) {
    const int64_t rows = p.rows - r0 < kGroupRows ? p.rows - r0 : kGroupRows;
    if (!softmax.Wanted(r0, rows)) continue;
    Multiply({.a = q + r0 * dp,
              .lda = dp,
              .b = k,
              .groups = kPanelKeys / 16,
              .pairs = (p.d + 1) / 2,
              .c = logits,
              .ldc = kPanelKeys,
              .accumulate = false},
             rows);
    // The softmax reads sixteen rows at a time.
    std::memset(logits + rows * kPanelKeys, 0, (Up(rows, 16) - rows) * kPanelKeys * sizeof(float));
    Soften(softmax, r0, rows, logits, prob);
    Multiply({.a = prob,
              .lda = kPanelKeys,
              .b = v,
              .groups = p.dv / 16,
              .pairs = (p.n + 1) / 2,
              .c = p.o + r0 * p.dv,
              .ldc = p.dv,
              .accumulate = true},
             rows);
  }
  return softmax.gain();
}

constexpr Bf16Attention kTable = {.name = "AVX512-BF16",
                                  .packed_keys = PackedKeys,
                                  .packed_values = PackedValues,
                                  .packed_queries = PackedQueries,
                                  .scratch_floats = ScratchFloats,
                                  .pack_queries = PackQueries,
                                  .pack_keys = PackKeyTiles,
                                  .pack_values = PackValueTiles,
                                  .attend = Attend};
}  // namespace

namespace bf16_internal {
const Bf16Attention* Avx512() {
  static const bool has = CpuHasDotProducts();
  return has ? &kTable : nullptr;
}
// Intel's cores since Sapphire Rapids, which AVX512-FP16 tells from Cooper Lake, take two cycles
// and both vector ports for a dot product: 16 products a cycle, where fp32 multiply-adds make 32.
bool Avx512OutrunsFp32() {
  // Asked of the CPU itself: not every compiler knows the name.
  constexpr unsigned kFp16 = 1u << 23;
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  const bool has_fp16 = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kFp16) != 0;
  return !(__builtin_cpu_is("intel") && has_fp16);
}
}  // namespace bf16_internal
}  // namespace sluice::kernels
#else
namespace sluice::kernels::bf16_internal {
const Bf16Attention* Avx512() { return nullptr; }
bool Avx512OutrunsFp32() { return false; }
}  // namespace sluice::kernels::bf16_internal
#endif
