#include "sluice/runtime/base/published.h"

#include <gtest/gtest.h>

#include <thread>

SLUICE_BEGIN_NAMESPACE
namespace published_test {
struct Matrix {  // every cell holds the version: a half-written one would differ
  explicit Matrix(uint64_t v) : cells(512, v) { ++alive; }
  ~Matrix() {
    --alive;
    for (uint64_t& c : cells) c = ~uint64_t{0};
  }
  std::vector<uint64_t> cells;
  static std::atomic<int> alive;
};
std::atomic<int> Matrix::alive{0};

TEST(Published, ReadersSeeWholeValuesAndNothingLeaks) {
  {
    Published<Matrix> p;
    p.Publish(std::make_unique<const Matrix>(0));
    std::atomic<bool> stop{false};
    std::vector<std::thread> readers;
    for (int slot = 0; slot < 3; ++slot) {
      readers.emplace_back([&, slot] {
        uint64_t last = 0;
        while (!stop) {
          Published<Matrix>::Guard g(p, slot);
          const uint64_t v = g->cells[0];
          for (uint64_t c : g->cells) ASSERT_EQ(c, v);
          ASSERT_GE(v, last);
          last = v;
        }
      });
    }
    for (uint64_t v = 1; v < 5000; ++v) p.Publish(std::make_unique<const Matrix>(v));
    stop = true;
    for (auto& t : readers) t.join();
    EXPECT_LE(p.retired(), 3u);
  }
  EXPECT_EQ(Matrix::alive, 0);
}

TEST(Published, NothingIsPublishedAtFirst) {
  Published<int> p;
  EXPECT_EQ(Published<int>::Guard(p, 0).get(), nullptr);
}
}  // namespace published_test
SLUICE_END_NAMESPACE
