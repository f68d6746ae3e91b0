#ifndef SLUICE_ROUTERS_ATTENTION_BIFORMER_BIFORMER_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_BIFORMER_BIFORMER_REFERENCE_H_
// Bi-level routing attention in plain loops and double precision, by the row and column of tokens.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct BiFormerReference {
  int64_t width = 0;  // tokens of a row of the grid
  int64_t regions = 7;
  int64_t k = 4;
  bool mean_of_cells = false;

  // The grid filled up until regions divide it.
  static int64_t Filled(int64_t n, int64_t by) {
    while (n % by != 0) ++n;
    return n;
  }
  int64_t RowsOfARegion(int64_t tokens) const {
    const int64_t rows = Filled(tokens, width) / width;
    return Filled(rows, regions) / regions;
  }
  int64_t ColumnsOfARegion() const { return Filled(width, regions) / regions; }

  int64_t RegionOf(int64_t token, int64_t tokens) const {
    const int64_t row = token / width;
    const int64_t column = token % width;
    return row / RowsOfARegion(tokens) * regions + column / ColumnsOfARegion();
  }

  // The regions that each region sees, ascending; of regions without tokens, nothing.
  std::vector<std::vector<int64_t>> Chosen(const AttentionInputs& in) const {
    const int64_t tokens = in.k.rows;
    const int64_t group = in.q.heads / in.k.heads;
    const double cells = static_cast<double>(RowsOfARegion(tokens) * ColumnsOfARegion());
    std::vector<std::vector<int64_t>> members(regions * regions);
    for (int64_t t = 0; t < tokens; ++t) members[RegionOf(t, tokens)].push_back(t);

    // Vectors of all query heads side by side, keys repeated for the heads of a group.
    std::vector<reference::Vector> queries(members.size());
    std::vector<reference::Vector> keys(members.size());
    for (size_t r = 0; r < members.size(); ++r) {
      const double count = mean_of_cells ? cells : static_cast<double>(members[r].size());
      for (int64_t h = 0; h < in.q.heads; ++h) {
        for (int64_t x = 0; x < in.q.dim; ++x) {
          double q = 0;
          double key = 0;
          for (int64_t t : members[r]) {
            q += in.q.at(t, h)[x];
            key += in.k.Get(t, h / group, x);
          }
          queries[r].push_back(q / count);
          keys[r].push_back(key / count);
        }
      }
    }

    std::vector<std::vector<int64_t>> chosen(members.size());
    for (size_t r = 0; r < members.size(); ++r) {
      if (members[r].empty()) continue;
      reference::Vector score;
      for (size_t to = 0; to < members.size(); ++to)
        score.push_back(members[to].empty() ? -HUGE_VAL : reference::Product(queries[r], keys[to]));
      chosen[r] = reference::Best(score, k);
      if (chosen[r].empty()) chosen[r] = {static_cast<int64_t>(r)};
    }
    return chosen;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    const std::vector<std::vector<int64_t>> chosen = Chosen(in);
    reference::Lists lists(in.q.rows * in.q.heads);
    for (int64_t i = 0; i < in.q.rows; ++i) {
      std::vector<uint32_t> keys;
      for (int64_t t = 0; t < in.k.rows; ++t) {
        for (int64_t r : chosen[RegionOf(i, in.k.rows)]) {
          if (RegionOf(t, in.k.rows) == r) keys.push_back(static_cast<uint32_t>(t));
        }
      }
      for (int64_t h = 0; h < in.q.heads; ++h) lists[i * in.q.heads + h] = keys;
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_BIFORMER_BIFORMER_REFERENCE_H_
