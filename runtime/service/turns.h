#ifndef SLUICE_RUNTIME_SERVICE_TURNS_H_
#define SLUICE_RUNTIME_SERVICE_TURNS_H_
#include <atomic>
#include <chrono>
#include <mutex>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
// A mutex that is not taken again by whoever just had it while others wait: one of them is next.
// With std::mutex a busy thread shuts everybody out, as those who wait have to wake up first.
class Turns {
 public:
  void lock() {
    ++waiting_;
    next_.lock();
    held_.lock();
    next_.unlock();
    --waiting_;
  }
  // False: it was not its turn until then.
  bool try_lock_until(std::chrono::steady_clock::time_point until) {
    ++waiting_;
    bool taken = next_.try_lock_until(OnWatchedClock(until));
    if (taken) {
      taken = held_.try_lock_until(OnWatchedClock(until));
      next_.unlock();
    }
    --waiting_;
    return taken;
  }
  void unlock() { held_.unlock(); }
  // By who holds it: lets somebody else in, where anybody waits.
  void Yield() {
    if (waiting_ == 0) return;
    unlock();
    lock();
  }

 private:
#ifdef __SANITIZE_THREAD__
  // GCC's ThreadSanitizer does not see a lock that waited by the steady clock.
  static std::chrono::system_clock::time_point OnWatchedClock(
      std::chrono::steady_clock::time_point until) {
    return std::chrono::system_clock::now() + (until - std::chrono::steady_clock::now());
  }
#else
  static std::chrono::steady_clock::time_point OnWatchedClock(
      std::chrono::steady_clock::time_point until) {
    return until;
  }
#endif

  std::timed_mutex next_;  // of those who wait, who comes next
  std::timed_mutex held_;
  std::atomic<int> waiting_{0};
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_TURNS_H_
