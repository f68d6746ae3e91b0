#include "sluice/runtime/weights/unit_cache.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr int64_t kAlignment = 64;
}  // namespace

absl::StatusOr<std::unique_ptr<UnitCache>> UnitCache::Create(int64_t slots, int64_t unit_bytes,
                                                             Read read) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 2;
  if (slots < 1 || unit_bytes < 1 || unit_bytes > kMost / slots - kAlignment)
    return absl::InvalidArgumentError(absl::StrCat("a cache of ", slots, " units of ", unit_bytes,
                                                   " bytes; allowed are 1 or more of each, and ",
                                                   kMost, " bytes in all"));
  return std::unique_ptr<UnitCache>(new UnitCache(slots, unit_bytes, std::move(read)));
}

UnitCache::UnitCache(int64_t slots, int64_t unit_bytes, Read read)
    : unit_bytes_(unit_bytes),
      stride_((unit_bytes + kAlignment - 1) / kAlignment * kAlignment),
      read_(std::move(read)),
      memory_(new std::byte[static_cast<size_t>(slots * stride_ + kAlignment)]),
      slots_(static_cast<size_t>(slots)),
      books_(slots, Load{this}, Evict{this}) {
  const auto at = reinterpret_cast<uintptr_t>(memory_.get());
  first_ = memory_.get() + (kAlignment - at % kAlignment) % kAlignment;
  for (size_t s = slots_.size(); s > 0; --s) free_.push_back(s - 1);
  reader_ = std::thread([this] { ReadAll(); });
}

UnitCache::~UnitCache() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  wake_.notify_all();
  reader_.join();
}

void UnitCache::Hint(int64_t layer, absl::Span<const int32_t> units) {
  const std::lock_guard lock(mutex_);
  books_.Hint(layer, units);
}

absl::Status UnitCache::Pin(int64_t layer, int32_t unit) {
  std::unique_lock lock(mutex_);
  SLUICE_RETURN_IF_ERROR(books_.Pin(layer, unit));
  const size_t slot = where_.at({layer, unit});
  if (slots_[slot].state == State::kThere) return absl::OkStatus();

  ReadFirst(slot);
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status read = WaitFor(slot, lock);
  waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (!read.ok()) books_.Unpin(layer, unit);
  return read;
}

void UnitCache::Unpin(int64_t layer, int32_t unit) {
  const std::lock_guard lock(mutex_);
  books_.Unpin(layer, unit);
}

absl::Span<const std::byte> UnitCache::Data(int64_t layer, int32_t unit) const {
  const std::lock_guard lock(mutex_);
  return Bytes(where_.at({layer, unit}));
}

double UnitCache::waited_seconds() const {
  const std::lock_guard lock(mutex_);
  return waited_;
}

int64_t UnitCache::used_slots() const {
  const std::lock_guard lock(mutex_);
  return std::ssize(where_);
}

void UnitCache::Assign(const Key& key) {
  const size_t slot = free_.back();
  free_.pop_back();
  where_[key] = slot;
  slots_[slot] = {key, State::kQueued, {}};
  queue_.push_back(slot);
  wake_.notify_one();
}

// A read of the slot that is under way ends before the next one of the slot begins: one thread
// reads.
void UnitCache::Free(const Key& key) {
  const auto it = where_.find(key);
  const size_t slot = it->second;
  std::erase(queue_, slot);
  slots_[slot].state = State::kEmpty;
  free_.push_back(slot);
  where_.erase(it);
}

void UnitCache::ReadFirst(size_t slot) {
  Slot& s = slots_[slot];
  if (s.state == State::kReading) return;
  s.state = State::kQueued;
  std::erase(queue_, slot);
  queue_.push_front(slot);
  wake_.notify_one();
}

absl::Status UnitCache::WaitFor(size_t slot, std::unique_lock<std::mutex>& lock) {
  const Slot& s = slots_[slot];
  done_.wait(lock, [&] { return s.state == State::kThere || s.state == State::kFailed; });
  return s.state == State::kThere ? absl::OkStatus() : s.failure;
}

void UnitCache::ReadAll() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return ends_ || !queue_.empty(); });
    if (ends_) return;
    const size_t slot = queue_.front();
    queue_.pop_front();
    slots_[slot].state = State::kReading;
    const Key key = slots_[slot].key;

    lock.unlock();
    absl::Status read = read_(key.first, key.second, Bytes(slot));
    lock.lock();
    // The slot may have been given to another unit meanwhile, which is read next.
    Slot& s = slots_[slot];
    if (s.state != State::kReading || s.key != key) continue;
    s.state = read.ok() ? State::kThere : State::kFailed;
    s.failure = std::move(read);
    done_.notify_all();
  }
}

absl::Span<std::byte> UnitCache::Bytes(size_t slot) const {
  return {first_ + static_cast<int64_t>(slot) * stride_, static_cast<size_t>(unit_bytes_)};
}
SLUICE_END_NAMESPACE
