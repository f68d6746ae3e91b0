#include "sluice/runtime/lab/facts_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "sluice/tests/support/host_fixture.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace facts_file_test {
using testing::HasSubstr;

class FactsFile : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Write(const std::string& text) const {
    const std::string path = std::string(folder_) + "/facts.json";
    std::ofstream(path) << text;
    return path;
  }
  std::string Refusal(const std::string& text) const {
    const auto read = ReadFactWording(Write(text));
    EXPECT_FALSE(read.ok()) << text;
    return std::string(read.status().message());
  }
  char folder_[32] = "/tmp/sluice-facts-XXXXXX";
};
constexpr char kDoors[] =
    R"({"statement": " {name} opens with {code}.", "question": " {name} opens with",)"
    R"( "answer": " {code}"})";

TEST_F(FactsFile, PromptsAreWordedAsItSays) {
  const auto wording = ReadFactWording(Write(kDoors));
  ASSERT_TRUE(wording.ok()) << wording.status();
  const Tokenizer& tokenizer = host::Mini().tokenizer;
  const std::vector<int32_t> text = tokenizer.Encode(std::string(3000, 'x'));
  const host::FactPrompt p = host::PlantFacts(tokenizer, text, 400, 2, 5, *wording);
  ASSERT_EQ(p.facts.size(), 2u);
  const std::string said = tokenizer.Decode(p.tokens);
  std::string asked;
  for (const auto& [name, code] : p.facts) {
    EXPECT_THAT(said, HasSubstr(" " + name + " opens with " + code + "."));
    asked += " " + name + " opens with " + code;
  }
  EXPECT_TRUE(said.ends_with(asked)) << said;
  EXPECT_EQ(said.find("Question"), std::string::npos);
  // The answers are marked, and nothing else.
  std::vector<int32_t> marked;
  for (size_t i = 0; i < p.tokens.size(); ++i) {
    if (p.answer[i] != 0) marked.push_back(p.tokens[i]);
  }
  EXPECT_EQ(tokenizer.Decode(marked), " " + p.facts[0].second + " " + p.facts[1].second);
}

// What the bundled model learned, as it was before wordings could be given.
TEST_F(FactsFile, TheBundledWordingStands) {
  const host::FactWording w;
  EXPECT_EQ(w.Statement("amber anchor", "123"), "\nThe code of the amber anchor is 123.\n");
  EXPECT_EQ(w.Question("amber anchor"),
            "\nQuestion: what is the code of the amber anchor? Answer:");
  EXPECT_EQ(w.Answer("amber anchor", "123"), " 123");
  const host::FactWording spaces = host::WordingWithSpaces();
  EXPECT_EQ(spaces.Statement("x", "1"), " The code of the x is 1. ");
  EXPECT_EQ(spaces.Question("x"), " Question: what is the code of the x? Answer:");
}

TEST_F(FactsFile, RefusesWhatIsNoWording) {
  for (const char* text : {"", "[]", "3", "{", "statement: x"})
    EXPECT_THAT(Refusal(text), HasSubstr("no JSON object; allowed: a JSON object of the texts"));
  EXPECT_THAT(Refusal("{}"), HasSubstr("0 of three texts"));
  EXPECT_THAT(Refusal(R"({"statement": "{name} {code}", "question": "{name}"})"),
              HasSubstr("2 of three texts"));
  const auto with = [](const std::string& s, const std::string& q, const std::string& a) {
    return R"({"statement": ")" + s + R"(", "question": ")" + q + R"(", "answer": ")" + a + R"("})";
  };
  EXPECT_THAT(Refusal(with("{name}", "{name}", "{code}")),
              HasSubstr("statement '{name}' lacks {code}"));
  EXPECT_THAT(Refusal(with("{code}", "{name}", "{code}")), HasSubstr("lacks {name}"));
  EXPECT_THAT(Refusal(with("{name}{code}", "what?", "{code}")),
              HasSubstr("question 'what?' lacks"));
  EXPECT_THAT(Refusal(with("{name}{code}", "{name}{code}", "{code}")),
              HasSubstr("tells the answer"));
  EXPECT_THAT(Refusal(with("{name}{code}", "{name}", "yes")),
              HasSubstr("answer 'yes' lacks {code}"));
  EXPECT_THAT(Refusal(with("{name}{code}{x}", "{name}", "{code}")),
              HasSubstr("another brace, at '{x}'"));
  EXPECT_THAT(Refusal(R"({"statement": "{name}{code}", "question": "{name}", "answer": 3})"),
              HasSubstr("'answer' is no text of it"));
  EXPECT_THAT(Refusal(R"({"statement": "{name}{code}", "question": "{name}", "reply": "{code}"})"),
              HasSubstr("'reply' is no text of it"));
  EXPECT_FALSE(ReadFactWording("/no/such/file").ok());
}

TEST_F(FactsFile, ANumberAFileOrBoth) {
  const std::string file = Write(kDoors);
  FactChoice choice = {.count = 7, .wording = {}};
  ASSERT_TRUE(ReadFactChoice({}, 1, false, choice).ok());
  EXPECT_EQ(choice.count, 7);
  ASSERT_TRUE(ReadFactChoice({"3", file}, 1, false, choice).ok());
  EXPECT_EQ(choice.count, 3);
  EXPECT_EQ(choice.wording.question, " {name} opens with");
  ASSERT_TRUE(ReadFactChoice({"0"}, 0, true, choice).ok());
  EXPECT_EQ(choice.count, 0);
  EXPECT_EQ(choice.wording.Question("x")[0], ' ');

  const auto said = [&](const std::vector<std::string>& given, bool spaces = false) {
    FactChoice any = {.count = 1, .wording = {}};
    return std::string(ReadFactChoice(given, 1, spaces, any).message());
  };
  for (const char* number : {"0", "17", "-1", "1.5", "nan", "1e300", "99999999999999999999"})
    EXPECT_THAT(said({number}), HasSubstr("allowed: 1 to 16 facts, or a file")) << number;
  EXPECT_THAT(said({"1", "2"}), HasSubstr("2 numbers and 0 files"));
  EXPECT_THAT(said({file, file}), HasSubstr("0 numbers and 2 files"));
  EXPECT_THAT(said({file}, true), HasSubstr("--spaces beside a file"));
  EXPECT_THAT(said({"nowhere"}), HasSubstr("cannot open nowhere"));
}
}  // namespace facts_file_test
}  // namespace lab
SLUICE_END_NAMESPACE
