#include "sluice/plugins/ggml/mask.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "sluice/runtime/attend/attend.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
namespace {
constexpr uint16_t kHidden = LogitMask::kHidden;
constexpr int64_t kPanel = kernels::kPanelKeys;
constexpr int64_t kTiles[] = {64, 16, 4, 1};

bool AllAre(const uint16_t* x, int64_t n, uint16_t value) {
  uint16_t off = 0;
  for (int64_t i = 0; i < n; ++i) off = static_cast<uint16_t>(off | (x[i] ^ value));
  return off == 0;
}
// Nothing but 0, -0 and -inf. Without branches and in 16 bits: compilers look at many at once.
bool NoValues(const uint16_t* x, int64_t n) {
  uint16_t values = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto counts = static_cast<uint16_t>((x[i] & 0x7FFF) == 0 ? 0 : 0xFFFF);
    values = static_cast<uint16_t>(values | (counts & (x[i] ^ kHidden)));
  }
  return values == 0;
}
// Bit k: key k of a panel is not hidden. The bytes of eight keys are gathered by a multiplication
// that moves byte i to bit 56 + i.
uint64_t VisibleKeys(const uint16_t* x, int64_t n) {
  constexpr uint64_t kGather = 0x0102040810204080;
  uint8_t seen[kPanel] = {};
  for (int64_t k = 0; k < n; ++k) seen[k] = static_cast<uint8_t>(x[k] != kHidden);
  uint64_t bits = 0;
  for (int64_t k = 0; k < kPanel; k += 8) {
    uint64_t eight = 0;
    std::memcpy(&eight, seen + k, sizeof eight);
    bits |= (eight * kGather >> 56) << k;
  }
  return bits;
}
}  // namespace

bool AllHidden(const uint16_t* x, int64_t n) { return AllAre(x, n, kHidden); }

using Bits = std::vector<uint64_t>;

// Of each query and panel of 64 keys: does it see something there, and is the mask 0 throughout?
class MaskPlan::Panels {
 public:
  void Read(const uint16_t* mask, int64_t stride, int64_t n_q, int64_t n_kv) {
    count_ = (n_kv + kPanel - 1) / kPanel;
    words_ = (count_ + 63) / 64;
    seen_.assign(n_q * words_, 0);
    zero_.assign(n_q * words_, 0);
    visible_.resize(n_q * count_);
    pairs_ = 0;
    for (int64_t i = 0; i < n_q; ++i) {
      for (int64_t p = 0; p < count_; ++p) {
        const int64_t n = std::min(kPanel, n_kv - p * kPanel);
        const uint16_t* x = mask + i * stride + p * kPanel;
        const uint64_t bit = uint64_t{1} << (p % 64);
        // Whole panels have a loop of a length that the compiler knows.
        const uint64_t visible = n == kPanel ? VisibleKeys(x, kPanel) : VisibleKeys(x, n);
        const int64_t keys = std::popcount(visible);
        visible_[i * count_ + p] = visible;
        pairs_ += keys;
        if (keys > 0) seen_[i * words_ + p / 64] |= bit;
        if (keys == n && AllAre(x, n, 0)) zero_[i * words_ + p / 64] |= bit;
      }
    }
  }
  int64_t count() const { return count_; }
  // Pairs of a query and a key that it sees.
  int64_t pairs() const { return pairs_; }
  // The keys of a panel that a query sees, as bits.
  uint64_t Visible(int64_t query, int64_t panel) const { return visible_[query * count_ + panel]; }
  // Any of the queries [first, last) sees something; until the next call.
  const Bits& Seen(int64_t first, int64_t last) {
    any_.assign(words_, 0);
    for (int64_t i = first; i < last; ++i) {
      for (int64_t w = 0; w < words_; ++w) any_[w] |= seen_[i * words_ + w];
    }
    return any_;
  }
  // The mask is 0 for all of them; until the next call.
  const Bits& Zero(int64_t first, int64_t last) {
    all_.assign(words_, ~uint64_t{0});
    for (int64_t i = first; i < last; ++i) {
      for (int64_t w = 0; w < words_; ++w) all_[w] &= zero_[i * words_ + w];
    }
    return all_;
  }

 private:
  int64_t count_ = 0;
  int64_t words_ = 0;
  int64_t pairs_ = 0;
  Bits visible_;
  Bits seen_;
  Bits zero_;
  Bits any_;
  Bits all_;
};

namespace {
// What a panel costs that is multiplied with so many rows, in rows. Packing it costs some twenty of
// them; a few rows are not packed, and cost half as much again each.
double PanelCost(int64_t rows) {
  constexpr double kPacking = 20;
  constexpr double kUnpacked = 1.5;
  const auto r = static_cast<double>(rows);
  return rows <= kernels::kFewRows ? kUnpacked * r : kPacking + r;
}
// Lists of panels for tiles of a height.
double CostOfTiles(MaskPlan::Panels& all, int64_t n_q, int64_t group, int64_t tile) {
  double cost = 0;
  for (int64_t first = 0; first < n_q; first += tile) {
    const int64_t last = std::min(n_q, first + tile);
    int64_t panels = 0;
    for (uint64_t word : all.Seen(first, last)) panels += std::popcount(word);
    cost += static_cast<double>(panels) * PanelCost((last - first) * group);
  }
  return cost;
}
// Lists of single keys, a list a query. Keys that lie apart are read at a fraction of the speed.
double CostOfKeys(int64_t visible, int64_t group) {
  constexpr double kScattered = 3;
  return static_cast<double>(visible) / kPanel * kScattered * PanelCost(group);
}
}  // namespace

MaskShape ReadMask(const uint16_t* mask, int64_t stride, int64_t n_q, int64_t n_kv) {
  MaskShape s;
  if (mask == nullptr || n_q == 0) return s;
  bool causal = true, window = true, zeros = true;
  for (int64_t i = 0; i < n_q; ++i) {
    const uint16_t* row = mask + i * stride;
    // Where the row before this one ended; the first row is searched.
    int64_t begin = 0, end = 0;
    if (i == 0) {
      while (begin < n_kv && row[begin] == kHidden) ++begin;
      end = n_kv;
      while (end > begin && row[end - 1] == kHidden) --end;
      if (begin == end) causal = window = false;  // a query that sees nothing
      s.first = end - 1;
      s.window = begin > 0 ? end - begin : 0;
    } else {
      end = s.first + i + 1;
      begin = s.window > 0 ? std::max<int64_t>(0, end - s.window) : 0;
      if (causal && s.window == 0 && end <= n_kv && begin < end && row[0] == kHidden && i > 0) {
        // A window that begins to cut inside this pass: its width shows at the first hidden key.
        int64_t cut = 0;
        while (cut < end && row[cut] == kHidden) ++cut;
        s.window = end - cut;
        begin = cut;
        causal = false;
      }
    }
    const bool fits = end <= n_kv && begin < end && AllAre(row, begin, kHidden) &&
                      AllAre(row + begin, end - begin, 0) && AllAre(row + end, n_kv - end, kHidden);
    if (!fits) causal = window = false;
    if (begin > 0) causal = false;
    if (!causal && !window) break;
  }
  if (causal) {
    s.kind = MaskShape::Kind::kCausal;
    return s;
  }
  if (window && s.window > 0) {
    s.kind = MaskShape::Kind::kWindow;
    return s;
  }
  for (int64_t i = 0; i < n_q && zeros; ++i) zeros = NoValues(mask + i * stride, n_kv);
  s.kind = zeros ? MaskShape::Kind::kRuns : MaskShape::Kind::kValues;
  return s;
}

namespace {
// Whether `next` shows what `row` shows and one key more, later than all of those, the last of
// which is `last`.
bool GrowsByOne(const uint16_t* row, const uint16_t* next, int64_t n_kv, int64_t last) {
  const auto [a, b] = std::mismatch(row, row + n_kv, next);
  const int64_t at = a - row;
  return at < n_kv && at > last && *a == kHidden && *b == 0 && std::equal(a + 1, row + n_kv, b + 1);
}
}  // namespace

int64_t ReadSequences(const uint16_t* mask, int64_t stride, int64_t n_q, int64_t n_kv,
                      std::vector<MaskSequence>& all) {
  size_t count = 0;
  for (int64_t first = 0; first < n_q;) {
    if (count == all.size()) all.emplace_back();
    MaskSequence& s = all[count];
    ++count;
    s.row = first;
    s.cells.clear();
    const uint16_t* row = mask + first * stride;
    bool zeros = true;
    for (int64_t k = 0; k < n_kv; ++k) {
      if (row[k] == kHidden) continue;
      zeros = zeros && row[k] == 0;
      s.cells.push_back(static_cast<uint32_t>(k));
    }
    if (!zeros) s.cells.clear();
    int64_t end = first + 1;
    while (!s.cells.empty() && end < n_q &&
           GrowsByOne(mask + (end - 1) * stride, mask + end * stride, n_kv, s.cells.back())) {
      const uint16_t* next = mask + end * stride;
      const int64_t after = static_cast<int64_t>(s.cells.back()) + 1;
      s.cells.push_back(static_cast<uint32_t>(std::find(next + after, next + n_kv, 0) - next));
      ++end;
    }
    s.rows = end - first;
    first = end;
  }
  return static_cast<int64_t>(count);
}

MaskPlan::MaskPlan() = default;
MaskPlan::~MaskPlan() = default;

void MaskPlan::Make(const MaskShape& shape, const uint16_t* mask, int64_t stride, int64_t n_q,
                    int64_t n_kv, int64_t group) {
  tile_ = kTiles[0];
  window_ = shape.window;
  wants_mask_ = false;
  by_key_ = false;
  entries_.clear();
  keys_.clear();
  begin_.assign(1, 0);
  count_.clear();
  zero_.clear();
  switch (shape.kind) {
    case MaskShape::Kind::kAll:
      for (int64_t first = 0; first < n_q; first += tile_) {
        Add(0, n_kv, MaskClass::kNone);
        Close();
      }
      break;
    case MaskShape::Kind::kCausal:
      break;  // plans of its own: routers'
    case MaskShape::Kind::kWindow:
      for (int64_t first = shape.first; first < shape.first + n_q; first += tile_) {
        const int64_t last = std::min(shape.first + n_q, first + tile_);
        const int64_t lo = std::max<int64_t>(0, first - shape.window + 1);
        Add(lo, std::min(n_kv, last), MaskClass::kLowerBound);
        Close();
      }
      break;
    case MaskShape::Kind::kRuns:
    case MaskShape::Kind::kValues:
      AddSeen(shape, mask, stride, n_q, n_kv, group);
      break;
  }
}

void MaskPlan::AddSeen(const MaskShape& shape, const uint16_t* mask, int64_t stride, int64_t n_q,
                       int64_t n_kv, int64_t group) {
  if (panels_ == nullptr) panels_ = std::make_unique<Panels>();
  panels_->Read(mask, stride, n_q, n_kv);
  double least = HUGE_VAL;
  for (int64_t tile : kTiles) {
    const double cost = CostOfTiles(*panels_, n_q, group, tile);
    if (cost >= least) continue;
    least = cost;
    tile_ = tile;
  }
  if (CostOfKeys(panels_->pairs(), group) < least) {
    wants_mask_ = shape.kind == MaskShape::Kind::kValues;
    AddKeys(n_q);
  } else {
    wants_mask_ = true;
    AddPanels(n_q, n_kv);
  }
}

void MaskPlan::AddKeys(int64_t n_q) {
  const Panels& panels = *panels_;
  tile_ = 1;
  by_key_ = true;
  keys_.reserve(static_cast<size_t>(panels.pairs()));
  for (int64_t i = 0; i < n_q; ++i) {
    for (int64_t p = 0; p < panels.count(); ++p) {
      for (uint64_t left = panels.Visible(i, p); left != 0; left &= left - 1)
        keys_.push_back(static_cast<uint32_t>(p * kPanel + std::countr_zero(left)));
    }
    Close();
  }
}

void MaskPlan::AddPanels(int64_t n_q, int64_t n_kv) {
  Panels& panels = *panels_;
  for (int64_t first = 0; first < n_q; first += tile_) {
    const int64_t last = std::min(n_q, first + tile_);
    const Bits& seen = panels.Seen(first, last);
    const Bits& zero = panels.Zero(first, last);
    zero_.insert(zero_.end(), zero.begin(), zero.end());
    const auto sees = [&](int64_t p) { return ((seen[p / 64] >> (p % 64)) & 1) != 0; };
    for (int64_t p = 0; p < panels.count(); ++p) {
      if (!sees(p)) continue;
      int64_t end = p;
      while (end < panels.count() && sees(end)) ++end;
      Add(p * kPanel, std::min(n_kv, end * kPanel), MaskClass::kNone);
      p = end;
    }
    Close();
  }
}

void MaskPlan::Add(int64_t lo, int64_t hi, MaskClass kind) {
  entries_.push_back(
      {.start = static_cast<uint32_t>(lo), .len = static_cast<uint32_t>(hi - lo), .mask = kind});
}

void MaskPlan::Close() {
  const int64_t end = by_key_ ? std::ssize(keys_) : std::ssize(entries_);
  count_.push_back(static_cast<uint32_t>(end - begin_.back()));
  begin_.push_back(end);
}

AttentionBranch MaskPlan::branch() const {
  AttentionBranch b;
  b.encoding = by_key_ ? Encoding::kTokens : Encoding::kRuns;
  b.token_mask = MaskClass::kNone;
  b.scope = ListScope::kAllHeads;
  b.tile = tile_;
  b.window = window_;
  b.num_tiles = std::ssize(count_);
  b.rows = {absl::MakeConstSpan(begin_).first(count_.size()), count_};
  b.entries = entries_;
  b.tokens = keys_;
  return b;
}

std::vector<float> AlibiSlopes(int64_t heads, float max_bias) {
  const auto whole = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  std::vector<float> slopes;
  for (int64_t h = 0; h < heads; ++h) {
    const double step =
        h < whole ? static_cast<double>(h + 1) : static_cast<double>(2 * (h - whole) + 1) / 2;
    slopes.push_back(static_cast<float>(
        std::exp2(-static_cast<double>(max_bias) / static_cast<double>(whole) * step)));
  }
  return slopes;
}
}  // namespace ggml
SLUICE_END_NAMESPACE
