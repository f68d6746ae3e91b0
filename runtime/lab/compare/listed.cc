#include "sluice/runtime/lab/compare/listed.h"

#include <algorithm>
#include <cmath>

#include "sluice/api/pattern.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr size_t kBins = kMapBins;

constexpr int64_t kCausalTile = 64;
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

// Keys that a row of a branch lists for its tile.
double ListedPairs::AddRow(const AttentionPlan& p, const AttentionBranch& b, int64_t list,
                           int64_t tile) {
  const int64_t begin = b.TileBegin(list, tile);
  const int64_t end = b.TileEnd(list, tile, p.q_count);
  if (begin == end) return 0;
  int64_t last = 0;
  int64_t first = p.kv_len;
  for (int64_t slot = begin; slot < end; ++slot) {
    last = std::max(last, p.position(b.Query(list, slot)));
    first = std::min(first, p.position(b.Query(list, slot)));
  }
  const double queries = static_cast<double>(end - begin);
  const size_t row = BinOf((first + last) / 2);
  double keys = 0;
  if (b.encoding == Encoding::kPattern) {
    pattern::PatternRuns runs(b, list, {first, last + 1}, last + 1, p.kv_len);
    for (pattern::KeyRange run; runs.Next(run);) keys += AddKeys(row, queries, run.lo, run.hi);
    return keys;
  }
  const int64_t r = b.row_of(list, tile);
  for (int64_t at = b.rows.begin[r]; at < b.rows.begin[r] + b.rows.count[r]; ++at) {
    int64_t lo = 0;
    int64_t hi = 0;
    if (b.ByToken()) {
      const int64_t unit = b.encoding == Encoding::kTokens ? 1 : b.block;
      lo = b.tokens[at] * unit;
      hi = lo + unit;
    } else if (b.entries[at].state == EntryState::kExact) {
      EntryKeys(b, b.entries[at], p.kv_len, &lo, &hi);
    }
    keys += AddKeys(row, queries, lo, std::min(hi, last + 1));
  }
  return keys;
}

void ListedPairs::AddCausal(const AttentionPlan& p) {
  const int64_t lists = p.branches[0].num_lists;
  for (int64_t first = 0; first < p.q_count; first += kCausalTile) {
    const int64_t last = std::min(p.q_count, first + kCausalTile);
    const double queries = static_cast<double>(last - first);
    const size_t row = BinOf(p.position((first + last) / 2));
    const double end = static_cast<double>(p.position(last - 1) + 1);
    for (size_t c = 0; c < kBins; ++c) {
      const double seen = std::clamp(end - static_cast<double>(c) * bin_, 0.0, bin_);
      map_all_[row * kBins + c] += queries * seen * static_cast<double>(lists);
    }
    causal_ += queries * end;
  }
}

void ListedPairs::Add(const AttentionPlan& p) {
  AddCausal(p);
  const int64_t heads = p.kv_heads;
  for (const AttentionBranch& b : p.branches) {
    for (int64_t list = 0; list < b.num_lists; ++list) {
      double pairs = 0;
      for (int64_t tile = 0; tile < b.num_tiles; ++tile) {
        const int64_t queries = b.TileEnd(list, tile, p.q_count) - b.TileBegin(list, tile);
        pairs += static_cast<double>(queries) * AddRow(p, b, list, tile);
      }
      // A list is for one or several KV heads, or several lists share a head.
      const int64_t begin = list * heads / b.num_lists;
      const int64_t end = std::max((list + 1) * heads / b.num_lists, begin + 1);
      const double share = static_cast<double>(std::max<int64_t>(1, b.num_lists / heads));
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
