#include "sluice/runtime/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <chrono>
#include <climits>
#include <filesystem>
#include <fstream>
#include <map>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/tests/support/tiny_model.h"

SLUICE_BEGIN_NAMESPACE
namespace tokenizer_test {
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
}  // namespace tokenizer_test
SLUICE_END_NAMESPACE
