#ifndef SLUICE_RUNTIME_BASE_PUBLISHED_H_
#define SLUICE_RUNTIME_BASE_PUBLISHED_H_
// One writer publishes immutable values; readers see the latest without a lock. Hazard pointers: a
// value is freed once no reader's slot names it.
#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "sluice/api/check.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
template <class T>
class Published {
 public:
  static constexpr int kReaders = 8;
  Published() = default;
  ~Published() { delete current_.load(); }
  Published(const Published&) = delete;
  Published& operator=(const Published&) = delete;

  // Guards one value from being freed. `slot`: this thread's own, [0, kReaders); one guard a slot
  // at a time.
  class Guard {
   public:
    Guard(Published& p, int slot) : hazard_(p.hazard_[slot]) {
      const T* seen = p.current_.load();
      do {
        value_ = seen;
        hazard_.store(value_);
        seen = p.current_.load();
      } while (seen != value_);
    }
    ~Guard() { hazard_.store(nullptr); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    const T* get() const { return value_; }
    const T* operator->() const { return value_; }
    const T& operator*() const { return *value_; }

   private:
    std::atomic<const T*>& hazard_;
    const T* value_ = nullptr;
  };

  // By the one writer.
  void Publish(std::unique_ptr<const T> value) {
    retired_.emplace_back(current_.exchange(value.release()));
    std::erase_if(retired_, [&](const std::unique_ptr<const T>& old) {
      for (const auto& h : hazard_) {
        if (h.load() == old.get() && old != nullptr) return false;
      }
      return true;
    });
  }
  size_t retired() const { return retired_.size(); }

 private:
  std::atomic<const T*> current_{nullptr};
  std::array<std::atomic<const T*>, kReaders> hazard_{};
  std::vector<std::unique_ptr<const T>> retired_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_BASE_PUBLISHED_H_
