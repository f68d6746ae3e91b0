#include "sluice/runtime/lab/compare/listed.h"

#include <algorithm>
#include <cmath>

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr size_t kBins = kMapBins;

// Queries [first, last) of a tile.
std::pair<int64_t, int64_t> TileOf(const AttentionPlan& p, int64_t tile) {
  const int64_t first = tile * p.tile;
  return {first, std::min(p.q_count, first + p.tile)};
}
int64_t KeysEnd(const AttentionPlan& p, int64_t tile) {
  return p.position(TileOf(p, tile).second - 1) + 1;
}
}  // namespace

ListedPairs::ListedPairs(int64_t kv_heads, int64_t context)
    : bin_(static_cast<double>(context) / kMapBins),
      head_(kv_heads, 0),
      map_(kBins * kBins, 0),
      map_all_(kBins * kBins, 0) {}

size_t ListedPairs::BinOf(int64_t position) const {
  return std::min(kBins - 1, static_cast<size_t>(static_cast<double>(position) / bin_));
}

double ListedPairs::AddKeys(size_t row, double queries, int64_t lo, int64_t hi) {
  double keys = 0;
  while (lo < hi) {
    const size_t column = BinOf(lo);
    int64_t to = hi;
    if (column + 1 < kBins) {
      const double edge = std::ceil(static_cast<double>(column + 1) * bin_);
      to = std::max(lo + 1, std::min(hi, static_cast<int64_t>(edge)));
    }
    map_[row * kBins + column] += queries * static_cast<double>(to - lo);
    keys += static_cast<double>(to - lo);
    lo = to;
  }
  return keys;
}

// Keys that one list gives the tile, over all branches.
double ListedPairs::AddList(const AttentionPlan& p, int64_t list, int64_t tile) {
  const auto [first, last] = TileOf(p, tile);
  const double queries = static_cast<double>(last - first);
  const size_t row = BinOf(p.position((first + last) / 2));
  const int64_t end = KeysEnd(p, tile);
  const auto r = static_cast<size_t>(list * p.num_tiles() + tile);
  double keys = 0;
  for (const auto& b : p.branches) {
    for (uint32_t i = 0; i < b.rows.count[r]; ++i) {
      const size_t at = b.rows.begin[r] + i;
      int64_t lo = 0;
      int64_t hi = 0;
      if (b.encoding == Encoding::kTokens) {
        lo = b.tokens[at];
        hi = lo + 1;
      } else if (b.encoding == Encoding::kRankedPrefix) {
        lo = b.tokens[at] * b.unit;
        hi = lo + b.unit;
      } else if (b.entries[at].state == EntryState::kExact) {
        EntryKeys(b, b.entries[at], p.kv_len, &lo, &hi);
      }
      keys += AddKeys(row, queries, lo, std::min(hi, end));
    }
  }
  return keys;
}

void ListedPairs::AddCausal(const AttentionPlan& p, int64_t tile) {
  const auto [first, last] = TileOf(p, tile);
  const double queries = static_cast<double>(last - first);
  const size_t row = BinOf(p.position((first + last) / 2));
  const double end = static_cast<double>(KeysEnd(p, tile));
  for (size_t c = 0; c < kBins; ++c) {
    const double seen = std::clamp(end - static_cast<double>(c) * bin_, 0.0, bin_);
    map_all_[row * kBins + c] += queries * seen * static_cast<double>(p.num_lists());
  }
  causal_ += queries * end;
}

void ListedPairs::Add(const AttentionPlan& p) {
  const int64_t lists = p.num_lists();
  const int64_t heads = p.kv_heads;
  for (int64_t tile = 0; tile < p.num_tiles(); ++tile) {
    AddCausal(p, tile);
    const auto [first, last] = TileOf(p, tile);
    for (int64_t list = 0; list < lists; ++list) {
      const double pairs = static_cast<double>(last - first) * AddList(p, list, tile);
      // A list is for one or several KV heads, or several lists share a head.
      const int64_t begin = list * heads / lists;
      const int64_t end = std::max((list + 1) * heads / lists, begin + 1);
      const double share = static_cast<double>(std::max<int64_t>(1, lists / heads));
      for (int64_t h = begin; h < end; ++h) head_[h] += pairs / share;
    }
  }
}

std::vector<double> ListedPairs::HeadDensity() const {
  std::vector<double> density;
  for (double h : head_) density.push_back(causal_ > 0 ? h / causal_ : 0);
  return density;
}
std::vector<double> ListedPairs::BlockMap() const {
  std::vector<double> map;
  for (size_t i = 0; i < map_.size(); ++i)
    map.push_back(map_all_[i] > 0 ? std::min(1.0, map_[i] / map_all_[i]) : -1);
  return map;
}
}  // namespace lab
SLUICE_END_NAMESPACE
