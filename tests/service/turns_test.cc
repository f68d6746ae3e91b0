#include "sluice/runtime/service/turns.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

SLUICE_BEGIN_NAMESPACE
namespace turns_test {
using std::chrono::milliseconds;
using std::chrono::steady_clock;

TEST(Turns, OneAtATime) {
  Turns turns;
  int inside = 0;
  int64_t count = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        std::unique_lock turn(turns, std::defer_lock);
        if (t % 2 == 0) {
          turn.lock();
        } else if (!turn.try_lock_until(steady_clock::now() + std::chrono::minutes(1))) {
          ADD_FAILURE() << "a minute";
          return;
        }
        EXPECT_EQ(++inside, 1);
        ++count;
        if (i % 3 == 0) {
          --inside;
          turns.Yield();
          EXPECT_EQ(++inside, 1);
        }
        --inside;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(count, 8000);
}
TEST(Turns, WhoIsBusyLetsOthersIn) {
  Turns turns;
  std::atomic<bool> stop{false};
  std::atomic<int64_t> rounds{0};
  std::thread busy([&] {
    std::lock_guard turn(turns);
    while (!stop) {
      ++rounds;
      turns.Yield();
    }
  });
  while (rounds == 0) std::this_thread::yield();
  for (int i = 0; i < 100; ++i) {
    std::unique_lock turn(turns, std::defer_lock);
    if (!turn.try_lock_until(steady_clock::now() + std::chrono::seconds(20))) {
      ADD_FAILURE() << "shut out at " << i;
      break;
    }
    const int64_t before = rounds;
    std::this_thread::sleep_for(milliseconds(1));
    EXPECT_EQ(rounds, before) << "not alone";
  }
  stop = true;
  busy.join();
}
TEST(Turns, IsNotWaitedForLongerThanSaid) {
  Turns turns;
  turns.lock();
  std::thread other([&] {
    const auto began = steady_clock::now();
    EXPECT_FALSE(turns.try_lock_until(began + milliseconds(30)));
    EXPECT_GE(steady_clock::now(), began + milliseconds(30));
  });
  other.join();
  turns.Yield();  // nobody waits any more
  turns.unlock();
  EXPECT_TRUE(turns.try_lock_until(steady_clock::now()));
  turns.unlock();
}
}  // namespace turns_test
SLUICE_END_NAMESPACE
