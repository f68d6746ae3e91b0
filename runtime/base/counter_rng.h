#ifndef SLUICE_RUNTIME_BASE_COUNTER_RNG_H_
#define SLUICE_RUNTIME_BASE_COUNTER_RNG_H_
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// Random numbers as a pure function of their coordinates, so results do not depend on the order or
// the thread that asks: SplitMix64's finaliser folded over the key words.
struct RngKey {
  uint64_t seed = 0, step = 0, layer = 0, unit = 0, item = 0;
};
inline uint64_t RandomBits(const RngKey& k) {
  uint64_t h = 0x9E3779B97F4A7C15u;
  for (uint64_t word : {k.seed, k.step, k.layer, k.unit, k.item}) {
    h += word + 0x9E3779B97F4A7C15u;
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
    h ^= h >> 31;
  }
  return h;
}
// Uniform in [0, 1).
inline double RandomUniform(const RngKey& k) {
  return static_cast<double>(RandomBits(k) >> 11) * 0x1p-53;
}
// Standard normal (Box-Muller over two coordinates derived from the key).
inline double RandomNormal(const RngKey& k) {
  RngKey second = k;
  second.seed ^= 0xD1B54A32D192ED03u;
  return std::sqrt(-2 * std::log(1 - RandomUniform(k))) *
         std::cos(6.283185307179586 * RandomUniform(second));
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_BASE_COUNTER_RNG_H_
