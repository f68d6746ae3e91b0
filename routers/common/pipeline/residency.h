#ifndef SLUICE_ROUTERS_COMMON_PIPELINE_RESIDENCY_H_
#define SLUICE_ROUTERS_COMMON_PIPELINE_RESIDENCY_H_
// Residency: which units' weights are in fast memory. Never changes a result, only when it comes.
#include <cstdint>
#include <list>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace pipeline {
struct ResidencyCounters {
  int64_t hints = 0;             // units hinted
  int64_t useful = 0;            // of them, used before they were evicted
  int64_t hits = 0, misses = 0;  // units found there, or not, when they were pinned
  int64_t evictions = 0;
};

// What a host implements: loading is its own.
class Residency {
 public:
  virtual ~Residency() = default;
  // These units of a layer may be wanted soon, the likeliest first.
  virtual void Hint(int64_t layer, absl::Span<const int32_t> units) = 0;
  // The unit is there and stays until as many Unpins. Fails when all that is there is pinned.
  virtual absl::Status Pin(int64_t layer, int32_t unit) = 0;
  virtual void Unpin(int64_t layer, int32_t unit) = 0;
  virtual const ResidencyCounters& counters() const = 0;
};

// Least recently used goes first, what is pinned never: a hinted unit is held from its hint to its
// use as far as the capacity allows. Keeps the books; `Load` and `Evict` move the weights.
template <class Load, class Evict>
class LruResidency final : public Residency {
 public:
  // capacity: units of all layers together, at least 1.
  LruResidency(int64_t capacity, Load load, Evict evict)
      : capacity_(capacity), load_(std::move(load)), evict_(std::move(evict)) {}

  void Hint(int64_t layer, absl::Span<const int32_t> units) override {
    for (int32_t u : units) {
      ++counters_.hints;
      const Key key = {layer, u};
      if (auto it = where_.find(key); it != where_.end()) {
        Touch(it->second);  // what is there already must not be the next to go
        it->second->hinted = true;
        continue;
      }
      if (!MakeRoom().ok()) return;
      Insert(key)->hinted = true;
    }
  }

  absl::Status Pin(int64_t layer, int32_t unit) override {
    const Key key = {layer, unit};
    auto it = where_.find(key);
    if (it == where_.end()) {
      ++counters_.misses;
      if (absl::Status s = MakeRoom(); !s.ok()) return s;
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

  At Insert(const Key& key) {
    order_.push_front({key});
    where_[key] = order_.begin();
    load_(key.layer, key.unit);
    return order_.begin();
  }

  absl::Status MakeRoom() {
    if (size() < capacity_) return absl::OkStatus();
    for (At at = order_.end(); at != order_.begin();) {
      --at;
      if (at->pins > 0) continue;
      evict_(at->key.layer, at->key.unit);
      ++counters_.evictions;
      where_.erase(at->key);
      order_.erase(at);
      return absl::OkStatus();
    }
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", capacity_, " resident units are pinned"));
  }

  int64_t capacity_;
  Load load_;
  Evict evict_;
  std::list<Entry> order_;  // the most recent first
  std::unordered_map<Key, At, Hash> where_;
  ResidencyCounters counters_;
};
}  // namespace pipeline
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_COMMON_PIPELINE_RESIDENCY_H_
