// The tables of methods in routers/README.md and pruners/README.md are what the methods say of
// themselves. With SLUICE_WRITE_TABLES set (`./dev methods`) the test writes them instead.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "sluice/api/registry.h"
#include "sluice/generated/all_methods.h"
#include "sluice/pruners/builtin.h"
#include "sluice/routers/builtin.h"

SLUICE_BEGIN_NAMESPACE
// A method's type may stand in the namespace of its domain.
namespace layer {}
namespace token {}
namespace head {}
namespace attention {}
namespace expert {}
namespace adapter {}
namespace agent {}
namespace weight {}
namespace {
// A method without a traits record of its own says what its type says: any field may be missing.
struct NoTraits {};
template <class M>
constexpr auto TraitsOf() {
  if constexpr (requires { M::kTraits; }) {
    return M::kTraits;
  } else {
    return NoTraits{};
  }
}

std::string Code(absl::string_view text) {
  if (text.empty()) return "";
  return absl::StrCat("`", absl::StrReplaceAll(text, {{"|", "\\|"}}), "`");
}
std::string YesNo(bool yes) { return yes ? "yes" : "no"; }

std::string FeedbackNames(uint32_t feedback) {
  std::vector<std::string> names;
  if ((feedback & kKeyMass) != 0) names.push_back("key mass");
  if ((feedback & kHeadNorm) != 0) names.push_back("head norm");
  if ((feedback & kRowMax) != 0) names.push_back("row maximum");
  if ((feedback & kLogSumExp) != 0) names.push_back("log-sum-exp");
  return absl::StrJoin(names, ", ");
}

// One column: its heading, and what a method's type and traits put there; empty where they say
// nothing of it.
constexpr const char* kColumns[] = {
    "domain", "title",    "arXiv",   "exact at full budget", "token-causal", "chunk-invariant",
    "stages", "feedback", "learned", "full budget",          "small budget"};

template <class M>
std::vector<std::string> Cells(absl::string_view domain) {
  constexpr auto t = TraitsOf<M>();
  std::string title, arxiv, exact, causal, chunks, stages, feedback, full, small;
  if constexpr (requires { t.title; }) title = std::string(t.title);
  if constexpr (requires { t.arxiv; }) arxiv = std::string(t.arxiv);
  if constexpr (requires { t.exact_at_full_budget; }) exact = YesNo(t.exact_at_full_budget);
  if constexpr (requires { t.token_causal; }) causal = YesNo(t.token_causal);
  if constexpr (requires { t.chunk_invariant; }) chunks = YesNo(t.chunk_invariant);
  if constexpr (requires { t.stages; }) stages = absl::StrCat(t.stages);
  if constexpr (requires { t.feedback; }) feedback = FeedbackNames(t.feedback);
  if constexpr (requires { t.full_budget; }) full = Code(t.full_budget);
  if constexpr (requires { M::FullBudget(); }) full = Code(PrintConfig(M::FullBudget()));
  if constexpr (requires { t.small_budget; }) small = Code(t.small_budget);
  if (!arxiv.empty()) arxiv = absl::StrCat("[", arxiv, "](https://arxiv.org/abs/", arxiv, ")");
  return {std::string(domain),    title, arxiv, exact, causal, chunks, stages, feedback,
          YesNo(LearnedModel<M>), full,  small};
}

template <class M>
std::string NameOf() {
  constexpr auto t = TraitsOf<M>();
  if constexpr (requires { t.name; }) {
    return std::string(t.name);
  } else {
    return std::string(M::kName);
  }
}

struct Method {
  std::string name;
  std::string folder;  // below the table's README
  std::vector<std::string> cells;
};
template <class M>
Method Describe(const std::string& domain, const std::string& folder) {
  return {NameOf<M>(), absl::StrCat(domain, "/", folder), Cells<M>(domain)};
}
#define SLUICE_METHOD(domain, folder, Type)              \
  {                                                      \
    using namespace domain;                              \
    methods.push_back(Describe<Type>(#domain, #folder)); \
  }
std::vector<Method> Routers() {
  std::vector<Method> methods;
#include "sluice/routers/builtin.def"
  return methods;
}
std::vector<Method> Pruners() {
  std::vector<Method> methods;
#include "sluice/pruners/builtin.def"
  return methods;
}
#undef SLUICE_METHOD

// Every name that a registry knows, ascending.
template <class Registered>
std::vector<std::string> Names(const Registered& r) {
  std::vector<std::string> names;
  const auto add = [&](const auto& map) {
    for (const auto& [name, factory] : map) names.push_back(name);
  };
  add(r.routers);
  add(r.attention);
  add(r.agents);
  if constexpr (requires { r.pruners; }) add(r.pruners);
  std::sort(names.begin(), names.end());
  return names;
}
std::vector<std::string> Names(const std::vector<Method>& methods) {
  std::vector<std::string> names;
  for (const Method& m : methods) names.push_back(m.name);
  std::sort(names.begin(), names.end());
  return names;
}

// A column that no method fills is left out.
std::string Table(const std::vector<Method>& methods) {
  std::vector<size_t> shown;
  for (size_t c = 0; c < std::size(kColumns); ++c) {
    const auto fills = [&](const Method& m) { return !m.cells[c].empty(); };
    if (std::any_of(methods.begin(), methods.end(), fills)) shown.push_back(c);
  }
  std::string head = "| method |";
  std::string rule = "|---|";
  for (size_t c : shown) {
    absl::StrAppend(&head, " ", kColumns[c], " |");
    absl::StrAppend(&rule, "---|");
  }
  std::string table = absl::StrCat(head, "\n", rule, "\n");
  for (const Method& m : methods) {
    absl::StrAppend(&table, "| [`", m.name, "`](", m.folder, ") |");
    for (size_t c : shown) absl::StrAppend(&table, m.cells[c].empty() ? "" : " ", m.cells[c], " |");
    absl::StrAppend(&table, "\n");
  }
  return table;
}

constexpr char kBegin[] = "<!-- methods -->\n";
constexpr char kEnd[] = "<!-- /methods -->";

void Check(const std::string& readme, const std::vector<Method>& methods) {
  const std::string path = absl::StrCat(SLUICE_SOURCE_DIR, "/", readme);
  std::ifstream in(path);
  ASSERT_TRUE(in.is_open()) << path;
  std::stringstream read;
  read << in.rdbuf();
  const std::string text = read.str();
  const size_t begin = text.find(kBegin);
  const size_t end = text.find(kEnd);
  ASSERT_TRUE(begin != std::string::npos && end != std::string::npos && begin < end)
      << readme << " has no place for its table: " << kBegin << kEnd;

  const size_t from = begin + std::strlen(kBegin);
  const std::string wanted = Table(methods);
  if (std::getenv("SLUICE_WRITE_TABLES") != nullptr) {
    std::ofstream(path) << text.substr(0, from) << wanted << text.substr(end);
    return;
  }
  EXPECT_TRUE(text.substr(from, end - from) == wanted)
      << readme << " has another table than its methods make; `./dev methods` writes it:\n\n"
      << wanted;
}

TEST(MethodsTable, HasWhatTheRegistriesHave) {
  EXPECT_EQ(Names(Routers()), Names(BuiltinRouters()));
  EXPECT_EQ(Names(Pruners()), Names(BuiltinPruners()));
}
TEST(MethodsTable, RoutersReadmeIsWhatRoutersSay) { Check("routers/README.md", Routers()); }
TEST(MethodsTable, PrunersReadmeIsWhatPrunersSay) { Check("pruners/README.md", Pruners()); }

// A method with none of the traits, and one with all of them.
struct Plain {
  static constexpr absl::string_view kName = "plain";
  struct Config {};
};
struct Told {
  static constexpr AttentionTraits kTraits = {.name = "told",
                                              .title = "T",
                                              .arxiv = "1",
                                              .feedback = kKeyMass | kRowMax,
                                              .stages = 2,
                                              .full_budget = "k=1",
                                              .small_budget = "a|b"};
  struct Config {};
};
TEST(MethodsTable, MissingTraitsAreEmptyCells) {
  const std::vector<Method> methods = {{NameOf<Plain>(), "token/p", Cells<Plain>("token")},
                                       {NameOf<Told>(), "attention/t", Cells<Told>("attention")}};
  const std::vector<std::string> lines = absl::StrSplit(Table(methods), '\n');
  EXPECT_EQ(lines[2], "| [`plain`](token/p) | token | | | | | | | | no | | |");
  EXPECT_EQ(lines[3],
            "| [`told`](attention/t) | attention | T | [1](https://arxiv.org/abs/1) | yes | no | "
            "yes | 2 | key mass, row maximum | no | `k=1` | `a\\|b` |");
}
}  // namespace
SLUICE_END_NAMESPACE
