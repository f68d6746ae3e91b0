#ifndef SLUICE_RUNTIME_WEIGHTS_UNIT_CACHE_H_
#define SLUICE_RUNTIME_WEIGHTS_UNIT_CACHE_H_
// Weights of units (experts) that do not fit in memory: a fixed number of slots, filled by reads
// that go on beside the host's own work.
//
//   cache->Hint(layer, units);          // before attention: the reads begin
//   cache->Pin(layer, unit);            // after it: waits for what is missing
//   Compute(cache->Data(layer, unit));
//   cache->Unpin(layer, unit);
//
// What is computed does not depend on the number of slots or on what was hinted.
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sluice/routers/common/pipeline/residency.h"

SLUICE_BEGIN_NAMESPACE
// Any thread may call it; at most `slots` units are pinned at a time. Owns one thread, which reads.
class UnitCache final : public pipeline::Residency {
 public:
  // Fills `to` [unit_bytes] with a unit's weights. Called by the reading thread, one at a time.
  using Read = std::function<absl::Status(int64_t layer, int32_t unit, absl::Span<std::byte> to)>;

  // Errors: fewer than one slot or byte, or more memory than there can be.
  static absl::StatusOr<std::unique_ptr<UnitCache>> Create(int64_t slots, int64_t unit_bytes,
                                                           Read read);
  ~UnitCache() override;

  // Returns at once.
  void Hint(int64_t layer, absl::Span<const int32_t> units) override;
  // Waits until the unit is there, its read before all that were only hinted. Errors: every slot is
  // pinned; what the read said, and the next Pin reads again.
  absl::Status Pin(int64_t layer, int32_t unit) override;
  void Unpin(int64_t layer, int32_t unit) override;
  // The bytes of a unit between its Pin and its Unpin; aligned to 64.
  absl::Span<const std::byte> Data(int64_t layer, int32_t unit) const;

  // Consistent only while no other thread calls.
  const pipeline::ResidencyCounters& counters() const override { return books_.counters(); }
  // That all Pins waited together.
  double waited_seconds() const;
  // Slots that hold a unit, or wait for one.
  int64_t used_slots() const;

 private:
  using Key = std::pair<int64_t, int32_t>;
  enum class State : uint8_t { kEmpty, kQueued, kReading, kThere, kFailed };
  struct Slot {
    Key key;
    State state = State::kEmpty;
    absl::Status failure;
  };
  struct Load {
    UnitCache* cache;
    void operator()(int64_t layer, int32_t unit) const { cache->Assign({layer, unit}); }
  };
  struct Evict {
    UnitCache* cache;
    void operator()(int64_t layer, int32_t unit) const { cache->Free({layer, unit}); }
  };

  UnitCache(int64_t slots, int64_t unit_bytes, Read read);
  // All of these with the mutex held.
  void Assign(const Key& key);
  void Free(const Key& key);
  void ReadFirst(size_t slot);
  absl::Status WaitFor(size_t slot, std::unique_lock<std::mutex>& lock);
  void ReadAll();  // the reading thread

  absl::Span<std::byte> Bytes(size_t slot) const;

  int64_t unit_bytes_;
  int64_t stride_;
  Read read_;
  std::unique_ptr<std::byte[]> memory_;
  std::byte* first_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;  // the reader: there is work, or the end
  std::condition_variable done_;  // those who wait: a read ended
  std::vector<Slot> slots_;
  std::vector<size_t> free_;
  std::map<Key, size_t> where_;
  std::deque<size_t> queue_;
  bool ends_ = false;
  double waited_ = 0;
  pipeline::LruResidency<Load, Evict> books_;
  std::thread reader_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_WEIGHTS_UNIT_CACHE_H_
