#include "sluice/runtime/weights/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "sluice/api/dtype.h"

SLUICE_BEGIN_NAMESPACE
namespace gguf_test {
struct Writer {
  std::string s = "GGUF";
  template <class T>
  Writer& Put(T v) {
    s.append(reinterpret_cast<const char*>(&v), sizeof v);
    return *this;
  }
  Writer& Text(const std::string& t) {
    Put<uint64_t>(t.size());
    s += t;
    return *this;
  }
  absl::StatusOr<Gguf> Parse() const {
    return Gguf::Parse({reinterpret_cast<const std::byte*>(s.data()), s.size()});
  }
};
Writer Small(uint32_t type = 8, uint64_t offset = 0) {
  Writer w;
  w.Put<uint32_t>(3).Put<uint64_t>(1).Put<uint64_t>(3);
  w.Text("a.int").Put<uint32_t>(4).Put<uint32_t>(7);
  w.Text("a.real").Put<uint32_t>(6).Put<float>(0.5f);
  w.Text("a.texts").Put<uint32_t>(9).Put<uint32_t>(8).Put<uint64_t>(2).Text("x").Text("yz");
  w.Text("t").Put<uint32_t>(2).Put<uint64_t>(32).Put<uint64_t>(1).Put<uint32_t>(type).Put<uint64_t>(
      offset);
  while (w.s.size() % 32 != 0) w.s.push_back(0);
  w.Put<uint16_t>(F32ToF16(0.25f));
  for (int i = 0; i < 32; ++i) w.Put<int8_t>(static_cast<int8_t>(i - 16));
  return w;
}
TEST(Gguf, ReadsValuesAndQ8) {
  const Writer w = Small();
  auto g = w.Parse();
  ASSERT_TRUE(g.ok()) << g.status();
  EXPECT_EQ(*g->Int("a.int"), 7);
  EXPECT_EQ(*g->Real("a.real"), 0.5);
  EXPECT_EQ((**g->Texts("a.texts"))[1], "yz");
  auto t = g->ReadF32("t", {32, 1});
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ((*t)[0], -4.0f);
  EXPECT_EQ((*t)[31], 3.75f);
  EXPECT_THAT(std::string(g->ReadF32("t", {1, 32}).status().message()),
              testing::HasSubstr("is [32, 1], wanted [1, 32]"));
  EXPECT_FALSE(g->Int("a.real").ok());
  EXPECT_EQ(g->Int("none").status().code(), absl::StatusCode::kNotFound);
}
TEST(Gguf, EveryTruncationIsAnError) {
  const Writer w = Small();
  for (size_t n = 0; n < w.s.size(); ++n) {
    EXPECT_FALSE(Gguf::Parse({reinterpret_cast<const std::byte*>(w.s.data()), n}).ok()) << n;
  }
}
TEST(Gguf, HostileSizesAndTypes) {
  EXPECT_THAT(std::string(Writer()
                              .Put<uint32_t>(3)
                              .Put<uint64_t>(1)
                              .Put<uint64_t>(uint64_t{1} << 60)
                              .Parse()
                              .status()
                              .message()),
              testing::HasSubstr("metadata values"));
  EXPECT_THAT(std::string(Writer()
                              .Put<uint32_t>(3)
                              .Put<uint64_t>(uint64_t{1} << 60)
                              .Put<uint64_t>(0)
                              .Parse()
                              .status()
                              .message()),
              testing::HasSubstr("tensors"));
  EXPECT_EQ(Writer().Put<uint32_t>(9).Put<uint64_t>(0).Put<uint64_t>(0).Parse().status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(Small(2).Parse().status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(Small(8, 3).Parse().status().message()),
              testing::HasSubstr("not a multiple of 32"));
  EXPECT_THAT(std::string(Small(8, uint64_t{1} << 62).Parse().status().message()),
              testing::HasSubstr("truncated"));
  EXPECT_THAT(std::string(Writer()
                              .Put<uint32_t>(3)
                              .Put<uint64_t>(0)
                              .Put<uint64_t>(1)
                              .Text("k")
                              .Put<uint32_t>(9)
                              .Put<uint32_t>(9)
                              .Put<uint64_t>(1)
                              .Put<uint64_t>(0)
                              .Parse()
                              .status()
                              .message()),
              testing::HasSubstr("array of type 9"));
  std::string not_gguf = "PNG\x01xxxxxxxxxxxxxxxxxxxxxxxxx";
  EXPECT_THAT(std::string(Gguf::Parse({reinterpret_cast<const std::byte*>(not_gguf.data()),
                                       not_gguf.size()})
                              .status()
                              .message()),
              testing::HasSubstr("not a GGUF file"));
  EXPECT_EQ(Gguf::Open("/no/such/file").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(Gguf::Open("/").ok());
}
}  // namespace gguf_test
SLUICE_END_NAMESPACE
