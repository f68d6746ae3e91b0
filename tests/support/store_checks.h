#ifndef SLUICE_TESTS_SUPPORT_STORE_CHECKS_H_
#define SLUICE_TESTS_SUPPORT_STORE_CHECKS_H_
// What every store has to do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/store/store.h"

SLUICE_BEGIN_NAMESPACE
// "sequence=bytes" of each.
inline std::vector<std::string> AllOutcomes(Store& store, uint64_t after = 0) {
  std::vector<std::string> out;
  const absl::Status status = store.Read(after, [&](uint64_t sequence, absl::string_view bytes) {
    out.push_back(absl::StrCat(sequence, "=", bytes));
  });
  EXPECT_TRUE(status.ok()) << status;
  return out;
}
inline absl::Status ReadNothing(Store& store, uint64_t after) {
  return store.Read(after, [](uint64_t sequence, absl::string_view) {
    ADD_FAILURE() << "outcome " << sequence << " was given";
  });
}
// `store` is new.
inline void ExerciseStore(Store& s) {
  EXPECT_EQ(*s.LeaseIds(10), 1u);
  EXPECT_EQ(*s.LeaseIds(5), 11u);
  EXPECT_EQ(*s.LeaseIds(1), 16u);
  EXPECT_EQ(*s.Newest(), 0u);
  EXPECT_EQ(*s.Oldest(), 1u);
  const std::string binary("\0\xff x", 4);
  EXPECT_THAT(*s.Append({{7, "seven"}, {9, binary}, {7, "again"}}),
              testing::ElementsAre(true, true, false));
  EXPECT_THAT(*s.Append({{9, "nine"}, {8, "eight"}}), testing::ElementsAre(false, true));
  EXPECT_THAT(AllOutcomes(s),
              testing::ElementsAre("1=seven", absl::StrCat("2=", binary), "3=eight"));
  EXPECT_THAT(AllOutcomes(s, 2), testing::ElementsAre("3=eight"));
  EXPECT_EQ(*s.Newest(), 3u);
  EXPECT_EQ(*s.Oldest(), 1u);
  EXPECT_EQ(s.LoadSnapshot("a").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(s.SaveSnapshot("a", {2, binary}).ok());
  ASSERT_TRUE(s.SaveSnapshot("a", {3, binary + binary}).ok());
  EXPECT_EQ(s.LoadSnapshot("a")->through, 3u);
  EXPECT_EQ(s.LoadSnapshot("a")->bytes, binary + binary);
  EXPECT_EQ(*s.GetOrPut("key", binary), binary);
  EXPECT_EQ(*s.GetOrPut("key", "other"), binary);
}
// `store` is one that ExerciseStore left. Afterwards: the outcome 7 of the decision 13.
inline void ExerciseTrim(Store& s) {
  ASSERT_TRUE(s.Append({{10, "ten"}, {11, "eleven"}, {12, "twelve"}}).ok());
  ASSERT_TRUE(s.Trim(1).ok());
  EXPECT_EQ(*s.Oldest(), 1u);
  ASSERT_TRUE(s.Trim(4).ok());
  ASSERT_TRUE(s.Trim(2).ok());  // below what is gone: nothing
  EXPECT_EQ(*s.Oldest(), 4u);
  EXPECT_EQ(*s.Newest(), 6u);
  EXPECT_THAT(AllOutcomes(s, 3), testing::ElementsAre("4=ten", "5=eleven", "6=twelve"));
  EXPECT_THAT(AllOutcomes(s, 6), testing::IsEmpty());

  // Behind the gap, and beyond the end.
  const absl::Status gap = ReadNothing(s, 1);
  EXPECT_EQ(gap.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(gap.message()), testing::HasSubstr("2 to 3"));
  const absl::Status lost = ReadNothing(s, 40);
  EXPECT_EQ(lost.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(lost.message()), testing::ContainsRegex("newest outcome is 6, but 40"));

  // A trimmed decision is still a repeated one, and numbers go on when nothing is left.
  EXPECT_THAT(*s.Append({{7, "again"}}), testing::ElementsAre(false));
  ASSERT_TRUE(s.Trim(1000).ok());
  EXPECT_EQ(*s.Newest(), 6u);
  EXPECT_EQ(*s.Oldest(), 7u);
  EXPECT_THAT(AllOutcomes(s, 6), testing::IsEmpty());
  EXPECT_EQ(ReadNothing(s, 5).code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(*s.Append({{12, "again"}, {13, "thirteen"}}), testing::ElementsAre(false, true));
  EXPECT_THAT(AllOutcomes(s, 6), testing::ElementsAre("7=thirteen"));
}
// `store` is new and keeps four ids.
inline void ExerciseForgetting(Store& s) {
  for (uint64_t id = 1; id <= 6; ++id) ASSERT_TRUE(s.Append({{id, "x"}}).ok());
  EXPECT_THAT(*s.Append({{1, "x"}}), testing::ElementsAre(false));  // nothing was trimmed
  ASSERT_TRUE(s.Trim(2).ok());
  EXPECT_THAT(*s.Append({{2, "x"}, {1, "new"}}), testing::ElementsAre(false, true));
  ASSERT_TRUE(s.Trim(100).ok());  // 1 to 7 are gone; 4 to 7 are known: ids 4, 5, 6, 1
  EXPECT_THAT(*s.Append({{4, "x"}, {5, "x"}, {6, "x"}, {1, "x"}}), testing::Each(false));
  EXPECT_THAT(*s.Append({{3, "x"}, {2, "x"}}), testing::Each(true));
  EXPECT_THAT(AllOutcomes(s, 7), testing::ElementsAre("8=x", "9=x"));
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_STORE_CHECKS_H_
