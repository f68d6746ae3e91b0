// The attention panel on AMX bf16 tiles. Highway has no AMX, so this file uses intrinsics; it is
// compiled for the instruction set that it checks for at run time, and nothing here runs before
// that check.
#include "sluice/runtime/kernels/attention_panel/bf16_avx512.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace sluice::kernels {
namespace {
constexpr int64_t kRows = kQueryPad;  // rows worked on at once: two tiles

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

bool CpuHasAmx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 24 & 1) && (d >> 22 & 1);
  const bool avx512 = (b >> 16 & 1) && (b >> 30 & 1) && (b >> 31 & 1) && (b >> 17 & 1);
  if (!tiles || !avx512 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Logits and probabilities (bf16) of two groups of rows, and an output strip of one.
int64_t ScratchFloats(int64_t /*rows*/, int64_t dv) {
  return 2 * kRows * kPanelKeys + kRows * kPanelKeys + kRows * Up(dv, 16);
}

// The tile intrinsics of GCC do not tell the compiler that they touch memory.
inline void Fence() { asm volatile("" ::: "memory"); }

// One panel for all rows, in groups of 32.
class TilePanel {
 public:
  TilePanel(const AttentionPanel& panel, const uint16_t* q, const uint16_t* k, const uint16_t* v)
      : p_(panel),
        q_(q),
        k_(k),
        v_(v),
        dp_(Up(panel.d, 32)),
        groups_(panel.dv / 16),
        softmax_(panel) {
    // Logits and probabilities are kept twice, so that three groups can be in flight.
    logits_[0] = p_.scratch;
    logits_[1] = p_.scratch + kRows * kPanelKeys;
    float* after = p_.scratch + 2 * kRows * kPanelKeys;
    probs_[0] = reinterpret_cast<uint16_t*>(after);
    probs_[1] = probs_[0] + kRows * kPanelKeys;
    strip_ = after + kRows * kPanelKeys;
  }

  // Tiles and vectors are different parts of the core, but its window holds only a few rows: so the
  // softmax of one group is interleaved with the logits of the next and the output of the previous
  // one.
  inline float Run() {
    int64_t turn = 0;
    int64_t r0 = NextWanted(0);
    int64_t previous = p_.rows;
    if (r0 < p_.rows) {
      Multiply(r0, logits_[0], 0);
      Multiply(r0, logits_[0], 2);
    }
    for (; r0 < p_.rows; turn ^= 1) {
      const int64_t next = NextWanted(r0 + kRows);
      for (int64_t h = 0; h < 2; ++h) {
        float* s = logits_[turn] + h * 16 * kPanelKeys;
        uint16_t* prob = probs_[turn] + h * 16 * kPanelKeys;
        softmax_.FindTops(r0 + h * 16, s);
        if (next < p_.rows) Multiply(next, logits_[turn ^ 1], h * 2);
        for (int64_t r = 0; r < 8; ++r) softmax_.Exponentiate(s, prob, r);
        if (previous < p_.rows)
          Accumulate(previous, probs_[turn ^ 1], h * groups_ / 2, (h + 1) * groups_ / 2);
        for (int64_t r = 8; r < 16; ++r) softmax_.Exponentiate(s, prob, r);
        softmax_.AddSums(r0 + h * 16);
      }
      previous = r0;
      r0 = next;
    }
    if (previous < p_.rows) Accumulate(previous, probs_[turn ^ 1], 0, groups_);
    return softmax_.gain();
  }

 private:
  int64_t RowsAt(int64_t r0) const { return p_.rows - r0 < kRows ? p_.rows - r0 : kRows; }
  int64_t NextWanted(int64_t r0) const {
    while (r0 < p_.rows && !softmax_.Wanted(r0, RowsAt(r0))) r0 += kRows;
    return r0;
  }

  // Logits of 32 rows and 32 keys, from key group g.
  inline void Multiply(int64_t r0, float* s, int64_t g) const {
    Fence();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c * 32 < p_.d; ++c) {
      _tile_loadd(4, q_ + r0 * dp_ + c * 32, static_cast<int>(dp_ * 2));
      _tile_loadd(5, q_ + (r0 + 16) * dp_ + c * 32, static_cast<int>(dp_ * 2));
      _tile_loadd(6, k_ + (c * 4 + g) * kTileWords * 2, 64);
      _tile_loadd(7, k_ + (c * 4 + g + 1) * kTileWords * 2, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, s + g * 16, kPanelKeys * 4);
    _tile_stored(1, s + g * 16 + 16, kPanelKeys * 4);
    _tile_stored(2, s + 16 * kPanelKeys + g * 16, kPanelKeys * 4);
    _tile_stored(3, s + 16 * kPanelKeys + g * 16 + 16, kPanelKeys * 4);
    Fence();
  }

  // Output columns of value groups [g0, g1). Whole groups of rows accumulate in place, a ragged one
  // through a strip.
  inline void Accumulate(int64_t r0, const uint16_t* prob, int64_t g0, int64_t g1) const {
    const int64_t rows = RowsAt(r0);
    const bool whole = rows == kRows;
    float* o = whole ? p_.o + r0 * p_.dv : strip_;
    if (!whole) {
      std::memset(strip_, 0, kRows * p_.dv * sizeof(float));
      std::memcpy(strip_, p_.o + r0 * p_.dv, rows * p_.dv * sizeof(float));
    }
    const int stride = static_cast<int>(p_.dv * 4);
    Fence();
    _tile_loadd(4, prob, kPanelKeys * 2);
    _tile_loadd(5, prob + 32, kPanelKeys * 2);
    _tile_loadd(6, prob + 16 * kPanelKeys, kPanelKeys * 2);
    _tile_loadd(7, prob + 16 * kPanelKeys + 32, kPanelKeys * 2);
    for (int64_t g = g0; g < g1; ++g) {
      _tile_loadd(0, o + g * 16, stride);
      _tile_loadd(1, o + 16 * p_.dv + g * 16, stride);
      _tile_loadd(2, v_ + g * kTileWords * 2, 64);
      _tile_loadd(3, v_ + (groups_ + g) * kTileWords * 2, 64);
      _tile_dpbf16ps(0, 4, 2);
      _tile_dpbf16ps(1, 6, 2);
      _tile_dpbf16ps(0, 5, 3);
      _tile_dpbf16ps(1, 7, 3);
      _tile_stored(0, o + g * 16, stride);
      _tile_stored(1, o + 16 * p_.dv + g * 16, stride);
    }
    Fence();
    if (!whole) std::memcpy(p_.o + r0 * p_.dv, strip_, rows * p_.dv * sizeof(float));
  }

  const AttentionPanel p_;  // of its own, so that what is stored cannot change it
  const uint16_t* q_;
  const uint16_t* k_;
  const uint16_t* v_;
  int64_t dp_;      // padded width of q
  int64_t groups_;  // of 16 value columns
  float* logits_[2];
  uint16_t* probs_[2];
  float* strip_;
  SoftmaxRows softmax_;
};

float Attend(const AttentionPanel& p, const uint16_t* q, const uint16_t* k, const uint16_t* v) {
  const TileConfig config;
  Fence();
  _tile_loadconfig(&config);
  const float gain = TilePanel(p, q, k, v).Run();
  _tile_release();
  return gain;
}

constexpr Bf16Attention kTable = {.name = "AMX",
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
const Bf16Attention* Amx() {
  static const bool has = CpuHasAmx();
  return has ? &kTable : nullptr;
}
}  // namespace bf16_internal
}  // namespace sluice::kernels
#else
namespace sluice::kernels::bf16_internal {
const Bf16Attention* Amx() { return nullptr; }
}  // namespace sluice::kernels::bf16_internal
#endif
