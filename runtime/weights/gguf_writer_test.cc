#include "sluice/runtime/weights/gguf_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

SLUICE_BEGIN_NAMESPACE
namespace {
TEST(GgufWriter, TheReaderGetsBackWhatWasWritten) {
  GgufWriter w;
  w.Set("a.int", int64_t{-7});
  w.Set("a.real", 0.25);
  w.Set("a.flag", true);
  w.Set("a.text", std::string("x y"));
  w.Set("a.ints", std::vector<int64_t>{1, 2, 3});
  w.Set("a.texts", std::vector<std::string>{"p", ""});
  std::vector<float> x(96);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) - 40.0f;
  const uint64_t flat[] = {96}, rows[] = {32, 3};
  ASSERT_TRUE(w.Add("f32", flat, x).ok());
  ASSERT_TRUE(w.Add("f16", rows, x, GgufType::kF16).ok());
  ASSERT_TRUE(w.Add("q8", rows, x, GgufType::kQ8_0).ok());
  const std::string bytes = w.Bytes();
  auto g = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  ASSERT_TRUE(g.ok()) << g.status();
  EXPECT_EQ(g->values().at("a.int"), GgufValue(int64_t{-7}));
  EXPECT_EQ(g->values().at("a.real"), GgufValue(0.25));
  EXPECT_EQ(g->values().at("a.flag"), GgufValue(true));
  EXPECT_EQ(g->values().at("a.text"), GgufValue(std::string("x y")));
  EXPECT_EQ(g->values().at("a.ints"), GgufValue(std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(g->values().at("a.texts"), GgufValue(std::vector<std::string>{"p", ""}));
  EXPECT_EQ(*g->ReadF32("f32", flat), x);
  EXPECT_EQ(*g->ReadF32("f16", rows), x);
  const std::vector<float> q = *g->ReadF32("q8", rows);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(q[i], x[i], 55.0 / 127);

  GgufWriter again;  // copies stay as they are
  again.Copy(**g->Tensor("q8"));
  const std::string copy = again.Bytes();
  auto h = Gguf::Parse({reinterpret_cast<const std::byte*>(copy.data()), copy.size()});
  ASSERT_TRUE(h.ok()) << h.status();
  EXPECT_EQ(*h->ReadF32("q8", rows), q);
}
TEST(GgufWriter, ErrorsSayWhatIsWrong) {
  GgufWriter w;
  const std::vector<float> x(60);
  const uint64_t odd[] = {30, 2}, wrong[] = {64};
  EXPECT_THAT(std::string(w.Add("t", odd, x, GgufType::kQ8_0).message()),
              testing::HasSubstr("multiple of 32"));
  EXPECT_THAT(std::string(w.Add("t", wrong, x).message()),
              testing::HasSubstr("60 elements, its shape holds 64"));
  EXPECT_THAT(std::string(w.Write("/nowhere/file.gguf").message()),
              testing::HasSubstr("/nowhere/file.gguf"));
}
}  // namespace
SLUICE_END_NAMESPACE
