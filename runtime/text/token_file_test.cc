#include "sluice/runtime/text/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <climits>
#include <filesystem>
#include <fstream>

#include "sluice/runtime/text/text_file.h"

SLUICE_BEGIN_NAMESPACE
namespace token_file_test {
using testing::HasSubstr;

class TokenFile : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Write(const std::string& bytes, const std::string& end = "") const {
    const std::string path = std::string(folder_) + "/tokens" + end;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  char folder_[32] = "/tmp/sluice-tokens-XXXXXX";
};
TEST_F(TokenFile, GivesTheRangeAskedFor) {
  const std::string path = Write(std::string("\x01\x00\x02\x00\xFF\xFF\x04\x00", 8));
  EXPECT_EQ(*ReadTokens(path, 0, -1), (std::vector<int32_t>{1, 2, 65535, 4}));
  EXPECT_EQ(*ReadTokens(path, 1, 2), (std::vector<int32_t>{2, 65535}));
  EXPECT_EQ(*ReadTokens(path, 4, 0), (std::vector<int32_t>{}));
}
TEST_F(TokenFile, RefusesRangesOutsideIt) {
  const std::string path = Write(std::string(8, '\1'));
  const std::pair<int64_t, int64_t> bad[] = {{0, 5},
                                             {5, 0},
                                             {5, -1},
                                             {-1, 2},
                                             {INT64_MAX, 2},
                                             {2, INT64_MAX},
                                             {INT64_MAX, INT64_MAX},
                                             {INT64_MIN, 1}};
  for (const auto& [skip, count] : bad) {
    const auto got = ReadTokens(path, skip, count);
    EXPECT_EQ(got.status().code(), absl::StatusCode::kOutOfRange) << skip << " " << count;
    EXPECT_THAT(got.status().message(), HasSubstr("holds 4 tokens"));
  }
}
TEST_F(TokenFile, RefusesWhatHoldsNoTokens) {
  EXPECT_THAT(ReadTokens(Write(""), 0, -1).status().message(), HasSubstr("holds no tokens"));
  EXPECT_THAT(ReadTokens(Write("odd"), 0, -1).status().message(), HasSubstr("holds 3 bytes"));
  const std::string pipe = std::string(folder_) + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, std::string("/dev/zero"), std::string(folder_)}) {
    EXPECT_THAT(ReadTokens(path, 0, -1).status().message(), HasSubstr("not a regular file"));
    EXPECT_THAT(ReadTextFile(path).status().message(), HasSubstr("not a regular file"));
  }
}

// Files as numpy.save writes them, by hand.
std::string Npy(const std::string& descr, const std::string& shape, const std::string& data,
                int version = 1) {
  std::string header = "{'descr': " + descr + ", 'fortran_order': False, 'shape': " + shape + ", }";
  const size_t before = version == 1 ? 10 : 12;
  while ((before + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string file = std::string("\x93NUMPY", 6) + static_cast<char>(version) + '\0';
  file += static_cast<char>(header.size() % 256);
  file += static_cast<char>(header.size() / 256);
  if (version > 1) file += std::string(2, '\0');
  return file + header + data;
}
const std::vector<int32_t> kThree = {5, 258, 3};

TEST_F(TokenFile, TheEndOfTheNameSaysTheWidth) {
  const std::string two("\5\0\2\1\3\0", 6);
  const std::string four("\5\0\0\0\2\1\0\0\3\0\0\0", 12);
  EXPECT_EQ(*ReadTokens(Write(two, ".u16"), 0, -1), kThree);
  EXPECT_EQ(*ReadTokens(Write(four, ".u32"), 0, -1), kThree);
  EXPECT_EQ(*ReadTokens(Write(four, ".u32"), 1, 1), (std::vector<int32_t>{258}));
  EXPECT_EQ(ReadTokens(Write(four, ".u16"), 0, -1)->size(), 6u);
  EXPECT_THAT(ReadTokens(Write(two, ".u32"), 0, -1).status().message(),
              HasSubstr("holds 6 bytes; token ids are 4 bytes each"));
  const std::string large("\0\0\0\0\xFF\xFF\xFF\xFF", 8);
  EXPECT_THAT(ReadTokens(Write(large, ".u32"), 0, -1).status().message(),
              HasSubstr("what stands at 1 is no token id; allowed: 0 to 2147483647"));
  EXPECT_TRUE(ReadTokens(Write(large, ".u32"), 0, 1).ok());  // which is not read
}

TEST_F(TokenFile, ReadsArraysOfNumPy) {
  const std::string two("\5\0\2\1\3\0", 6);
  const std::string four("\5\0\0\0\2\1\0\0\3\0\0\0", 12);
  std::string eight;
  for (int32_t id : kThree) {
    eight += static_cast<char>(id % 256);
    eight += static_cast<char>(id / 256);
    eight += std::string(6, '\0');
  }
  for (int version : {1, 2, 3}) {
    EXPECT_EQ(*ReadTokens(Write(Npy("'<u2'", "(3,)", two, version), ".npy"), 0, -1), kThree);
    EXPECT_EQ(*ReadTokens(Write(Npy("'<i4'", "(3,)", four, version)), 0, -1), kThree);
    EXPECT_EQ(*ReadTokens(Write(Npy("'<i8'", "(3,)", eight, version)), 0, -1), kThree);
  }
  EXPECT_EQ(*ReadTokens(Write(Npy("'|u1'", "(2,)", "ab")), 0, -1), (std::vector<int32_t>{97, 98}));
  EXPECT_EQ(*ReadTokens(Write(Npy("'<u2'", "(3,)", two)), 1, 1), (std::vector<int32_t>{258}));
}

TEST_F(TokenFile, RefusesArraysThatAreNoTokens) {
  const std::string data(16, '\1');
  const auto said = [&](const std::string& file) {
    return std::string(ReadTokens(Write(file, ".npy"), 0, -1).status().message());
  };
  for (const char* descr : {"'<f4'", "'>u2'", "'<u3'", "'|b1'", "<u2", "[('a', '<u2')]", "''"})
    EXPECT_THAT(said(Npy(descr, "(8,)", data)), HasSubstr("allowed: little-endian integers"))
        << descr;
  for (const char* shape : {"(2, 4)", "()", "(-8,)", "(8)", "8", "(99999999999999999999,)", "(x,)"})
    EXPECT_THAT(said(Npy("'<u2'", shape, data)), HasSubstr("allowed: one dimension, (N,)"))
        << shape;
  // Claims that the file does not keep, one whose product of sizes would wrap round among them.
  for (const char* shape : {"(9,)", "(7,)", "(4611686018427387912,)", "(9223372036854775807,)"})
    EXPECT_THAT(said(Npy("'<u4'", shape, data)), HasSubstr("but 16 bytes follow")) << shape;
  EXPECT_THAT(said(Npy("'<i2'", "(8,)", std::string(16, '\xFF'))), HasSubstr("is no token id"));
  EXPECT_THAT(said("plain"), HasSubstr("does not begin as a .npy file does"));
  EXPECT_THAT(said(Npy("'<u2'", "(0,)", "")), HasSubstr("holds no tokens"));
  std::string version = Npy("'<u2'", "(8,)", data);
  version[6] = 4;
  EXPECT_THAT(said(version), HasSubstr("of version 4; allowed: 1 to 3"));
  std::string longer = Npy("'<u2'", "(8,)", data);
  longer[9] = '\x7F';
  EXPECT_THAT(said(longer), HasSubstr("its header claims"));
}

// A file cut short anywhere, or with any byte of its header changed, is read or refused.
TEST_F(TokenFile, NoDamageDoesHarm) {
  const std::string whole = Npy("'<u2'", "(3,)", std::string("\5\0\2\1\3\0", 6));
  for (size_t n = 0; n < whole.size(); ++n)
    EXPECT_FALSE(ReadTokens(Write(whole.substr(0, n), ".npy"), 0, -1).ok()) << n;
  for (size_t at = 0; at < whole.size() - 6; ++at) {
    for (int flip : {1, 0x20, 0x80, 0xFF}) {
      std::string other = whole;
      other[at] = static_cast<char>(other[at] ^ flip);
      const auto got = ReadTokens(Write(other, ".npy"), 0, -1);
      EXPECT_LE(got.ok() ? got->size() : 0, 6u);
    }
  }
}
}  // namespace token_file_test
SLUICE_END_NAMESPACE
