#include "sluice/runtime/weights/gguf_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <tuple>

#include "sluice/api/dtype.h"

SLUICE_BEGIN_NAMESPACE
namespace gguf_writer_test {
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
// What a file too large to be held is made of: its head, then the data.
TEST(GgufWriter, AHeadAndTheDataAfterItAreAFile) {
  GgufWriter w;
  w.Set32("a.count", 7u);
  w.Set32("a.share", 0.5f);
  w.Set("a.text", std::string("x"));
  const GgufPlace places[] = {{"first", {3}, 0, 12}, {"second", {2, 2}, 0, 16}};
  std::string bytes = w.Head(places);
  EXPECT_EQ(bytes.size() % w.alignment(), 0u);
  const float first[] = {1, 2, 3}, second[] = {4, 5, 6, 7};
  bytes.append(reinterpret_cast<const char*>(first), sizeof first);
  bytes.resize(bytes.size() + w.alignment() - sizeof first);
  bytes.append(reinterpret_cast<const char*>(second), sizeof second);
  bytes.resize(bytes.size() + w.alignment() - sizeof second);
  const auto g = Gguf::Parse({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  ASSERT_TRUE(g.ok()) << g.status();
  EXPECT_EQ(*g->Int("a.count"), 7);
  EXPECT_EQ(*g->Real("a.share"), 0.5);
  const auto type = [&](size_t entry) {
    uint32_t code = 0;
    std::memcpy(&code, g->entries()[entry].value.data(), sizeof code);
    return code;
  };
  EXPECT_EQ(type(0), 4u);
  EXPECT_EQ(type(1), 6u);
  EXPECT_EQ(*g->ReadF32("first", {{3}}), std::vector<float>({1, 2, 3}));
  EXPECT_EQ(*g->ReadF32("second", {{2, 2}}), std::vector<float>({4, 5, 6, 7}));
}
std::string Text(const GgufEntry& e) {
  return {reinterpret_cast<const char*>(e.value.data()), e.value.size()};
}
// A file as others write it: narrow integers, single floats, an alignment of its own, an order that
// is not the alphabet's.
std::string Foreign() {
  std::string s = "GGUF";
  const auto put = [&s](auto v) { s.append(reinterpret_cast<const char*>(&v), sizeof v); };
  const auto text = [&](const std::string& t) {
    put(uint64_t{t.size()});
    s += t;
  };
  put(uint32_t{3});
  put(uint64_t{2});
  put(uint64_t{6});
  text("general.alignment");
  put(uint32_t{4});
  put(uint32_t{128});
  text("z.u32");
  put(uint32_t{4});
  put(uint32_t{7});
  text("a.u8");
  put(uint32_t{0});
  put(uint8_t{200});
  text("m.float");
  put(uint32_t{6});
  put(0.1f);
  text("b.flags");
  put(uint32_t{9});
  put(uint32_t{7});
  put(uint64_t{3});
  s += std::string("\1\0\1", 3);
  text("c.texts");
  put(uint32_t{9});
  put(uint32_t{8});
  put(uint64_t{2});
  text("x");
  text("yz");
  for (const auto& [name, type, offset] :
       {std::tuple("second", 8u, 0u), std::tuple("first", 1u, 128u)}) {
    text(name);
    put(uint32_t{2});
    put(uint64_t{32});
    put(uint64_t{1});
    put(uint32_t{type});
    put(uint64_t{offset});
  }
  s.resize((s.size() + 127) / 128 * 128);
  put(F32ToF16(0.25f));
  for (int i = 0; i < 32; ++i) put(static_cast<int8_t>(i - 16));
  s.resize((s.size() + 127) / 128 * 128);
  for (int i = 0; i < 32; ++i) put(F32ToF16(static_cast<float>(i) / 3));
  return s;
}
absl::StatusOr<Gguf> Parse(const std::string& s) {
  return Gguf::Parse({reinterpret_cast<const std::byte*>(s.data()), s.size()});
}
TEST(GgufWriter, CopiesAFileByteForByte) {
  const std::string bytes = Foreign();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->tensor_names(), testing::ElementsAre("second", "first"));
  GgufWriter w;
  w.CopyValues(*file);
  for (const std::string& name : file->tensor_names()) w.Copy(**file->Tensor(name));
  const std::string copy = w.Bytes();
  const auto again = Parse(copy);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->entries().size(), file->entries().size());
  for (size_t i = 0; i < file->entries().size(); ++i) {
    EXPECT_EQ(again->entries()[i].key, file->entries()[i].key);
    EXPECT_EQ(Text(again->entries()[i]), Text(file->entries()[i])) << file->entries()[i].key;
  }
  EXPECT_EQ(again->tensor_names(), file->tensor_names());
  for (const auto& [name, t] : again->tensors()) {
    EXPECT_EQ((t.data - reinterpret_cast<const std::byte*>(copy.data())) % 128, 0) << name;
    EXPECT_EQ(std::memcmp(t.data, (*file->Tensor(name))->data, t.bytes), 0) << name;
  }
  // What is cut short is refused, wherever it is cut.
  for (size_t n = 0; n + 128 < copy.size(); n += 7)
    EXPECT_FALSE(Parse(copy.substr(0, n)).ok()) << n;
}
TEST(GgufWriter, ReplacesIntegersInTheirType) {
  const std::string bytes = Foreign();
  const auto file = Parse(bytes);
  GgufWriter w;
  w.CopyValues(*file);
  ASSERT_TRUE(w.Replace("z.u32", 5).ok());
  ASSERT_TRUE(w.Replace("a.u8", 255).ok());
  const std::string copy = w.Bytes();
  const auto again = Parse(copy);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again->Int("z.u32"), 5);
  EXPECT_EQ(*again->Int("a.u8"), 255);
  EXPECT_EQ(again->entries()[1].value.size(), 8u);
  EXPECT_EQ(again->entries()[2].value.size(), 5u);
  EXPECT_THAT(std::string(w.Replace("a.u8", 256).message()),
              testing::HasSubstr("'a.u8' of 8 bits does not hold 256"));
  EXPECT_THAT(std::string(w.Replace("z.u32", -1).message()), testing::HasSubstr("32 bits"));
  EXPECT_THAT(std::string(w.Replace("m.float", 1).message()), testing::HasSubstr("is no integer"));
  EXPECT_EQ(w.Replace("none", 1).code(), absl::StatusCode::kNotFound);
}
TEST(GgufWriter, AddsIntegersInTheTypeOfAnother) {
  const std::string bytes = Foreign();
  const auto file = Parse(bytes);
  GgufWriter w;
  w.CopyValues(*file);
  ASSERT_TRUE(w.SetLike("new.u8", "a.u8", 255).ok());
  ASSERT_TRUE(w.SetLike("new.u32", "z.u32", 4294967295).ok());
  ASSERT_TRUE(w.SetLike("newer.u8", "new.u8", 0).ok());
  const auto refused = [&](const std::string& key, const std::string& like, int64_t value,
                           absl::StatusCode code, const std::string& says) {
    const absl::Status s = w.SetLike(key, like, value);
    EXPECT_EQ(s.code(), code) << s;
    EXPECT_THAT(std::string(s.message()), testing::HasSubstr(says));
  };
  refused("z.u32", "a.u8", 1, absl::StatusCode::kAlreadyExists, "'z.u32' is there already");
  refused("new.u8", "a.u8", 1, absl::StatusCode::kAlreadyExists, "'new.u8' is there already");
  refused("odd", "none", 1, absl::StatusCode::kNotFound, "no key 'none' whose type to take");
  refused("odd", "m.float", 1, absl::StatusCode::kInvalidArgument, "is no integer");
  refused("odd", "c.texts", 1, absl::StatusCode::kInvalidArgument, "is no integer");
  refused("odd", "a.u8", 256, absl::StatusCode::kOutOfRange, "of 8 bits does not hold 256");
  refused("odd", "a.u8", -1, absl::StatusCode::kOutOfRange, "of 8 bits does not hold -1");

  // The old ones byte for byte, the new ones behind them, and nothing of what was refused.
  const std::string copy = w.Bytes();
  const auto again = Parse(copy);
  ASSERT_TRUE(again.ok()) << again.status();
  const size_t old = file->entries().size();
  ASSERT_EQ(again->entries().size(), old + 3);
  for (size_t i = 0; i < old; ++i) {
    EXPECT_EQ(again->entries()[i].key, file->entries()[i].key);
    EXPECT_EQ(Text(again->entries()[i]), Text(file->entries()[i]));
  }
  const std::pair<std::string, std::string> added[] = {
      {"new.u8", std::string("\0\0\0\0\xff", 5)},
      {"new.u32", std::string("\4\0\0\0\xff\xff\xff\xff", 8)},
      {"newer.u8", std::string("\0\0\0\0\0", 5)}};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(again->entries()[old + i].key, added[i].first);
    EXPECT_EQ(Text(again->entries()[old + i]), added[i].second) << added[i].first;
  }
}
TEST(GgufWriter, WhatOnlyLostWeightsKeepsItsBits) {
  const std::string bytes = Foreign();
  const auto file = Parse(bytes);
  for (const char* name : {"second", "first"}) {
    const GgufTensor& t = **file->Tensor(name);
    const std::vector<float> was = GgufDecode(t);
    EXPECT_EQ(*GgufEncodeLike(t, was), std::string(reinterpret_cast<const char*>(t.data), t.bytes));
    std::vector<float> left = was;
    left[0] = 0;  // the largest of the block
    left[20] = 0;
    const std::string stored = *GgufEncodeLike(t, left);
    GgufTensor back = t;
    back.data = reinterpret_cast<const std::byte*>(stored.data());
    EXPECT_EQ(GgufDecode(back), left) << name;
  }
  // Another number than those that were: a scale of its own, and 0 stays 0.
  const GgufTensor& t = **file->Tensor("second");
  std::vector<float> moved = GgufDecode(t);
  moved[1] = 0.3f;
  moved[2] = 0;
  const std::string stored = *GgufEncodeLike(t, moved);
  GgufTensor back = t;
  back.data = reinterpret_cast<const std::byte*>(stored.data());
  const std::vector<float> got = GgufDecode(back);
  EXPECT_EQ(got[2], 0);
  for (size_t i = 0; i < moved.size(); ++i) EXPECT_NEAR(got[i], moved[i], 4.0 / 127) << i;
}
TEST(GgufWriter, NumbersThatATypeCannotHoldAreRefused) {
  const std::string bytes = Foreign();
  const auto file = Parse(bytes);
  const GgufTensor& f16 = **file->Tensor("first");
  std::vector<float> x(32);
  x[3] = 70000;
  EXPECT_THAT(std::string(GgufEncodeLike(f16, x).status().message()),
              testing::HasSubstr("element 3 of tensor 'first' is 70000; allowed in F16"));
  x[3] = NAN;
  EXPECT_THAT(std::string(GgufEncodeLike(f16, x).status().message()), testing::HasSubstr("is nan"));
  EXPECT_TRUE(GgufEncodeLike(**file->Tensor("second"), std::vector<float>(32, 70000)).ok());
  EXPECT_THAT(std::string(GgufEncodeLike(f16, std::vector<float>(31)).status().message()),
              testing::HasSubstr("holds 32 elements; 31 were given"));
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
}  // namespace gguf_writer_test
SLUICE_END_NAMESPACE
