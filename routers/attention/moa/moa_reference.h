#ifndef SLUICE_ROUTERS_ATTENTION_MOA_MOA_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_MOA_MOA_REFERENCE_H_
// MoA's masks, position by position.
#include <cmath>
#include <cstdint>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
struct MoaReference {
  double alpha = 0, beta = 0;
  int block = 64;
  int sink = 1;  // blocks
  int least = 64;
  bool by_token = false;

  // Whether, at a length, a query sees a key.
  bool Sees(int64_t query, int64_t key, int64_t length) const {
    if (key > query) return false;
    if (key < int64_t{sink} * block) return true;
    if (by_token) {
      const double span = std::trunc(alpha + beta * static_cast<double>(length));
      return static_cast<double>(query - key) < span || query - key < least;
    }
    int64_t blocks = 0;
    while (blocks * block < length) ++blocks;
    const double span = std::trunc(std::floor(alpha / block) + beta * static_cast<double>(blocks));
    const int64_t behind = query / block - key / block;
    return static_cast<double>(behind) < span || behind * block < least;
  }
  std::vector<uint32_t> List(int64_t query, int64_t length) const {
    std::vector<uint32_t> keys;
    for (int64_t key = 0; key < length; ++key) {
      if (Sees(query, key, length)) keys.push_back(static_cast<uint32_t>(key));
    }
    return keys;
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_MOA_MOA_REFERENCE_H_
