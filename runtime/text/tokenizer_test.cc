#include "sluice/runtime/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <chrono>
#include <climits>
#include <filesystem>
#include <fstream>
#include <map>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/text/text_file.h"
#include "sluice/tests/support/tiny_model.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using testing::HasSubstr;

const Gguf& File() {
  static const auto* f = new Gguf(
      *Gguf::Open(std::string(SLUICE_SOURCE_DIR) + "/examples/models/sluice-mini-q8_0.gguf"));
  return *f;
}
const Tokenizer& Mini() {
  static const auto* t = new Tokenizer(*Tokenizer::Load(File()));
  return *t;
}

// BPE as it is defined: look at all pairs, merge the first one of the lowest rank, look again. Over
// texts and the file's own lists, for words that are not split any further.
class Reference {
 public:
  Reference() {
    const auto& tokens = **File().Texts("tokenizer.ggml.tokens");
    const auto& merges = **File().Texts("tokenizer.ggml.merges");
    for (size_t i = 0; i < tokens.size(); ++i) id_[tokens[i]] = static_cast<int32_t>(i);
    for (size_t r = 0; r < merges.size(); ++r) rank_[merges[r]] = r;
  }
  std::vector<int32_t> Encode(const std::string& word) const {
    std::vector<std::string> parts;
    for (char c : word) parts.push_back(PrintableByte(static_cast<unsigned char>(c)));
    for (;;) {
      size_t best = SIZE_MAX;
      size_t at = 0;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto found = rank_.find(parts[i] + " " + parts[i + 1]);
        if (found == rank_.end() || found->second >= best) continue;
        best = found->second;
        at = i;
      }
      if (best == SIZE_MAX) break;
      parts[at] += parts[at + 1];
      parts.erase(parts.begin() + static_cast<int64_t>(at) + 1);
    }
    std::vector<int32_t> ids;
    for (const std::string& p : parts) ids.push_back(id_.at(p));
    return ids;
  }

 private:
  std::map<std::string, int32_t> id_;
  std::map<std::string, size_t> rank_;
};

TEST(Tokenizer, MergesAsTheDefinitionDoes) {
  const Reference reference;
  // Few letters make many competing merges; each alphabet is one kind, so a text is one word.
  const std::string alphabets[] = {"ab", "etaoins",    "abcdefghijklmnopqrstuvwxyz", "=",
                                   "=-", "0123456789", "lo\xC3\xA9\xE2\x82\xAC",     " ",
                                   "e"};
  uint64_t n = 0;
  for (const std::string& alphabet : alphabets) {
    for (int round = 0; round < 60; ++round) {
      std::string word(1 + RandomBits({1, n++, 0, 0, 0}) % 70, 'x');
      for (size_t i = 0; i < word.size(); ++i)
        word[i] = alphabet[RandomBits({2, n, i, 0, 0}) % alphabet.size()];
      ASSERT_EQ(Mini().Encode(word), reference.Encode(word)) << word;
    }
  }
}
TEST(Tokenizer, LongRunsOfOneCharacterEndSoon) {
  const auto from = std::chrono::steady_clock::now();
  for (const char c : {'=', ' ', 'a'}) {
    const std::string text(200000, c);
    const std::vector<int32_t> ids = Mini().Encode(text);
    EXPECT_LT(ids.size(), text.size());
    EXPECT_EQ(Mini().Decode(ids), text);
  }
  // Quadratic merging takes minutes, this some tenths of a second.
  EXPECT_LT(std::chrono::steady_clock::now() - from, std::chrono::seconds(20));
}

class TokenFile : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Write(const std::string& bytes) const {
    const std::string path = std::string(folder_) + "/tokens";
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
}  // namespace
SLUICE_END_NAMESPACE
