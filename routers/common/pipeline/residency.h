#ifndef SLUICE_ROUTERS_COMMON_PIPELINE_RESIDENCY_H_
#define SLUICE_ROUTERS_COMMON_PIPELINE_RESIDENCY_H_
// Residency: which units' weights are in fast memory. Never changes a result, only when it comes.
#include <algorithm>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/assignment.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
struct ResidencyCounters {
  int64_t hints = 0;             // units hinted
  int64_t useful = 0;            // of them, used before they were evicted
  int64_t hits = 0, misses = 0;  // units found there, or not, when they were pinned
  int64_t loads = 0;             // units loaded, for a hint or for a pin
  int64_t evictions = 0;

  // Pins that cost no load, neither when they came nor when they were hinted; below 0 where more
  // was hinted in vain.
  double HitRate() const {
    const auto pins = static_cast<double>(hits + misses);
    return pins > 0 ? 1 - static_cast<double>(loads) / pins : 0;
  }
};

// What a host implements: loading is its own.
class Residency {
 public:
  virtual ~Residency() = default;
  // These units of a layer may be wanted soon, the likeliest first. Stands until the layer's next
  // hint: an empty one ends it.
  virtual void Hint(int64_t layer, absl::Span<const int32_t> units) = 0;
  // The unit is there and stays until as many Unpins. Fails when all that is there is pinned.
  virtual absl::Status Pin(int64_t layer, int32_t unit) = 0;
  virtual void Unpin(int64_t layer, int32_t unit) = 0;
  virtual const ResidencyCounters& counters() const = 0;
};

// The units of an assignment as a prefetch wants them: every item's best one, in item order, then
// every second best, ...; each once.
class RankMajor {
 public:
  // At most `most` units; valid until the next call. Needs a.score. O(entries k), k units an item.
  absl::Span<const int32_t> Order(const Assignment& a, int64_t most) {
    units_.clear();
    taken_.assign(static_cast<size_t>(a.units), false);
    const int64_t slots = Place(a);
    for (int64_t slot = 0; slot < slots; ++slot) {
      for (int64_t e = 0; e < a.entries(); ++e) {
        const int32_t u = a.unit[e];
        if (place_[e] != slot || taken_[u]) continue;
        if (std::ssize(units_) >= most) return units_;
        taken_[u] = true;
        units_.push_back(u);
      }
    }
    return units_;
  }

 private:
  // place_[e]: the entries of e's item that rank before it. Returns the most entries of an item.
  int64_t Place(const Assignment& a) {
    place_.assign(static_cast<size_t>(a.entries()), 0);
    int64_t slots = 0;
    for (int64_t i = 0; i < a.items; ++i) {
      const int64_t begin = a.row_ptr[i];
      const int64_t end = a.row_ptr[i + 1];
      slots = std::max(slots, end - begin);
      for (int64_t e = begin; e < end; ++e) {
        for (int64_t o = begin; o < end; ++o)
          place_[e] += a.score[o] > a.score[e] || (a.score[o] == a.score[e] && o < e);
      }
    }
    return slots;
  }

  std::vector<int64_t> place_;
  std::vector<int32_t> units_;
  std::vector<bool> taken_;
};

// Least recently used goes first; what is pinned never. A hinted unit is held from its hint to its
// pin: another hint does not take its place, and a pin only where everything else is pinned. Keeps
// the books; `Load` and `Evict` move the weights.
template <class Load, class Evict>
class LruResidency final : public Residency {
 public:
  // capacity: units of all layers together, at least 1.
  LruResidency(int64_t capacity, Load load, Evict evict)
      : capacity_(capacity), load_(std::move(load)), evict_(std::move(evict)) {}

  void Hint(int64_t layer, absl::Span<const int32_t> units) override {
    EndHint(layer);
    counters_.hints += std::ssize(units);
    hinted_[layer].assign(units.begin(), units.end());
    // What is there is held first, so that loading the others does not evict it.
    for (int32_t u : units) {
      if (auto it = where_.find({layer, u}); it != where_.end()) it->second->hinted = true;
    }
    for (int32_t u : units) {
      const Key key = {layer, u};
      if (where_.contains(key)) continue;
      if (!MakeRoom(/*for_hint=*/true).ok()) break;
      Insert(key)->hinted = true;
    }
    for (auto u = units.rbegin(); u != units.rend(); ++u) {
      if (auto it = where_.find({layer, *u}); it != where_.end()) Touch(it->second);
    }
  }

  absl::Status Pin(int64_t layer, int32_t unit) override {
    const Key key = {layer, unit};
    auto it = where_.find(key);
    if (it == where_.end()) {
      ++counters_.misses;
      if (absl::Status s = MakeRoom(/*for_hint=*/false); !s.ok()) return s;
      Insert(key)->pins = 1;
      return absl::OkStatus();
    }
    ++counters_.hits;
    Touch(it->second);
    if (it->second->hinted) ++counters_.useful;
    it->second->hinted = false;
    ++it->second->pins;
    return absl::OkStatus();
  }

  void Unpin(int64_t layer, int32_t unit) override {
    if (auto it = where_.find({layer, unit}); it != where_.end() && it->second->pins > 0)
      --it->second->pins;
  }

  const ResidencyCounters& counters() const override { return counters_; }
  int64_t size() const { return static_cast<int64_t>(order_.size()); }

 private:
  struct Key {
    int64_t layer;
    int32_t unit;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct Hash {
    size_t operator()(const Key& k) const {
      return static_cast<size_t>(k.layer) * 0x9E3779B97F4A7C15u ^ static_cast<size_t>(k.unit);
    }
  };
  struct Entry {
    Key key;
    int64_t pins = 0;
    bool hinted = false;
  };
  using At = typename std::list<Entry>::iterator;

  void Touch(At at) { order_.splice(order_.begin(), order_, at); }

  void EndHint(int64_t layer) {
    for (int32_t u : hinted_[layer]) {
      if (auto it = where_.find({layer, u}); it != where_.end()) it->second->hinted = false;
    }
  }

  At Insert(const Key& key) {
    ++counters_.loads;
    order_.push_front({key});
    where_[key] = order_.begin();
    load_(key.layer, key.unit);
    return order_.begin();
  }

  absl::Status MakeRoom(bool for_hint) {
    if (size() < capacity_) return absl::OkStatus();
    auto victim = std::find_if(order_.rbegin(), order_.rend(),
                               [](const Entry& e) { return e.pins == 0 && !e.hinted; });
    if (victim == order_.rend() && !for_hint)
      victim =
          std::find_if(order_.rbegin(), order_.rend(), [](const Entry& e) { return e.pins == 0; });
    if (victim == order_.rend())
      return absl::ResourceExhaustedError(
          absl::StrCat("all ", capacity_, " resident units are pinned"));
    evict_(victim->key.layer, victim->key.unit);
    ++counters_.evictions;
    where_.erase(victim->key);
    order_.erase(std::prev(victim.base()));
    return absl::OkStatus();
  }

  int64_t capacity_;
  Load load_;
  Evict evict_;
  std::list<Entry> order_;  // the most recent first
  std::unordered_map<Key, At, Hash> where_;
  std::unordered_map<int64_t, std::vector<int32_t>> hinted_;  // what stands, by layer
  ResidencyCounters counters_;
};
}  // namespace pipeline
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_PIPELINE_RESIDENCY_H_
