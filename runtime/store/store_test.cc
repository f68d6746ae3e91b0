#include "sluice/runtime/store/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/store/record.h"
#include "sluice/tests/support/store_checks.h"

SLUICE_BEGIN_NAMESPACE
namespace store_test {
std::string TempDir() {
  std::string path = testing::TempDir() + "sluice-store-XXXXXX";
  EXPECT_NE(mkdtemp(path.data()), nullptr);
  return path;
}
TEST(Store, Memory) {
  const auto s = MakeMemoryStore();
  ExerciseStore(*s);
  ExerciseTrim(*s);
  EXPECT_FALSE(s->durable());
  EXPECT_EQ(s->durability(), "memory, lost at exit");
  EXPECT_THAT(*s->Exchange("me", "mine", 1000), testing::IsEmpty());
}

TEST(Store, MemoryIsBoundedWithoutBeingTrimmed) {
  const auto s = MakeMemoryStore(4);
  for (uint64_t id = 1; id <= 6; ++id) ASSERT_TRUE(s->Append({{id, absl::StrCat(id)}}).ok());
  EXPECT_EQ(*s->Oldest(), 3u);
  EXPECT_THAT(AllOutcomes(*s, 2), testing::ElementsAre("3=3", "4=4", "5=5", "6=6"));
  EXPECT_EQ(ReadNothing(*s, 1).code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(*s->Append({{3, "x"}}), testing::ElementsAre(false));
  EXPECT_THAT(*s->Append({{2, "x"}}), testing::ElementsAre(true));  // forgotten
}

TEST(Store, Sqlite) {
  const std::string path = TempDir() + "/state.db";
  {
    auto s = OpenSqliteStore(path);
    ASSERT_TRUE(s.ok()) << s.status();
    ExerciseStore(**s);
    EXPECT_TRUE((*s)->durable());
    EXPECT_EQ((*s)->durability(), "sqlite, synced at every commit");
  }
  {
    auto again = OpenSqliteStore(path);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(AllOutcomes(**again).size(), 3u);
    EXPECT_EQ(*(*again)->LeaseIds(1), 17u);
    EXPECT_THAT(*(*again)->Append({{7, "again"}}), testing::ElementsAre(false));
    ExerciseTrim(**again);
  }
  auto trimmed = OpenSqliteStore(path);
  ASSERT_TRUE(trimmed.ok()) << trimmed.status();
  EXPECT_EQ(*(*trimmed)->Oldest(), 7u);
  EXPECT_THAT(AllOutcomes(**trimmed, 6), testing::ElementsAre("7=thirteen"));
  EXPECT_THAT(*(*trimmed)->Append({{7, "again"}}), testing::ElementsAre(false));
}

TEST(Store, SqliteForgetsIdsOfLongAgo) {
  auto s = OpenSqliteStore(TempDir() + "/ids.db", StoreAccess::kServe, 4);
  ASSERT_TRUE(s.ok()) << s.status();
  ExerciseForgetting(**s);
}

TEST(Store, SqliteTrimsManyInSteps) {
  auto s = OpenSqliteStore(TempDir() + "/many.db");
  ASSERT_TRUE(s.ok()) << s.status();
  std::vector<StoredOutcome> many;
  for (uint64_t id = 1; id <= 20'000; ++id) many.push_back({id, "some outcome"});
  ASSERT_TRUE((*s)->Append(many).ok());
  ASSERT_TRUE((*s)->Trim(19'999).ok());
  EXPECT_THAT(AllOutcomes(**s, 19'998),
              testing::ElementsAre("19999=some outcome", "20000=some outcome"));
}

TEST(Store, SqliteSaysWhatItCannotOpen) {
  EXPECT_THAT(OpenSqliteStore("/no/such/folder/x.db").status().message(),
              testing::HasSubstr("/no/such/folder/x.db"));
  const std::string path = TempDir() + "/text.db";
  FILE* f = fopen(path.c_str(), "w");
  for (int i = 0; i < 200; ++i) fputs("this is no database\n", f);
  fclose(f);
  EXPECT_THAT(OpenSqliteStore(path).status().message(), testing::HasSubstr("not a database"));
}

// A child appends in batches and reports each acknowledged batch through a pipe; it is killed
// somewhere inside. What it acknowledged is there.
TEST(Store, SqliteKeepsWhatItAcknowledgedThroughKill) {
  const std::string path = TempDir() + "/kill.db";
  uint64_t acknowledged = 0;
  for (uint64_t round = 0; round < 6; ++round) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      close(ends[0]);
      auto s = OpenSqliteStore(path);
      if (!s.ok()) _exit(1);
      for (uint64_t id = acknowledged + 1;; id += 16) {
        std::vector<StoredOutcome> batch;
        for (uint64_t i = 0; i < 16; ++i)
          batch.push_back({id + i, absl::StrCat("outcome ", id + i)});
        if (!(*s)->Append(batch).ok()) _exit(2);
        const uint64_t upto = id + 15;
        if (write(ends[1], &upto, sizeof upto) != sizeof upto) _exit(3);
      }
    }
    close(ends[1]);
    uint64_t seen = 0;
    while (seen < 8 + round * 3 &&
           read(ends[0], &acknowledged, sizeof acknowledged) == sizeof acknowledged)
      ++seen;
    kill(child, SIGKILL);
    while (read(ends[0], &acknowledged, sizeof acknowledged) == sizeof acknowledged) {
    }
    waitpid(child, nullptr, 0);
    close(ends[0]);
    ASSERT_GT(seen, 0u);
    auto s = OpenSqliteStore(path);
    ASSERT_TRUE(s.ok()) << s.status();
    ASSERT_GE(*(*s)->Newest(), acknowledged);
    uint64_t next = 1;
    ASSERT_TRUE((*s)->Read(0,
                           [&](uint64_t sequence, absl::string_view bytes) {
                             EXPECT_EQ(sequence, next);
                             EXPECT_EQ(bytes, absl::StrCat("outcome ", next));
                             ++next;
                           })
                    .ok());
    acknowledged = next - 1;
  }
}

TEST(Store, SqliteKeepsASecondServerOut) {
  const std::string folder = TempDir();
  const std::string path = folder + "/one.db";
  {
    auto first = OpenSqliteStore(path);
    ASSERT_TRUE(first.ok()) << first.status();
    std::filesystem::create_symlink(path, folder + "/link.db");
    for (const std::string& same : {path, folder + "/link.db"}) {
      const absl::Status second = OpenSqliteStore(same).status();
      EXPECT_EQ(second.code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(std::string(second.message()),
                  testing::AllOf(testing::HasSubstr(same), testing::HasSubstr("another server")));
    }
  }
  EXPECT_TRUE(OpenSqliteStore(path).ok());
}

TEST(Store, SqliteReaderSeesWhatAWriterAppends) {
  const std::string path = TempDir() + "/both.db";
  auto writer = OpenSqliteStore(path);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->Append({{1, "one"}}).ok());
  auto reader = OpenSqliteStore(path, StoreAccess::kRead);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_THAT(AllOutcomes(**reader), testing::ElementsAre("1=one"));
  ASSERT_TRUE((*writer)->Append({{2, "two"}}).ok());
  EXPECT_THAT(AllOutcomes(**reader, 1), testing::ElementsAre("2=two"));
  EXPECT_EQ(*(*reader)->Newest(), 2u);

  // A reader in the midst of its reading holds nobody up, and sees what there was when it began.
  std::vector<std::string> seen;
  ASSERT_TRUE((*reader)
                  ->Read(0,
                         [&](uint64_t, absl::string_view bytes) {
                           seen.emplace_back(bytes);
                           EXPECT_TRUE((*writer)->Append({{2 + seen.size(), "later"}}).ok());
                           EXPECT_TRUE((*writer)->Trim(3).ok());
                         })
                  .ok());
  EXPECT_THAT(seen, testing::ElementsAre("one", "two"));
  EXPECT_EQ(*(*reader)->Oldest(), 3u);

  // Readers come and go while a server appends: nothing is refused and nothing missed.
  std::atomic<bool> stop = false;
  std::thread others([&] {
    while (!stop) {
      auto another = OpenSqliteStore(path, StoreAccess::kRead);
      ASSERT_TRUE(another.ok()) << another.status();
      EXPECT_GE(AllOutcomes(**another, 2).size(), 2u);
    }
  });
  for (uint64_t id = 100; id < 400; ++id) {
    const auto fresh = (*writer)->Append({{id, "x"}});
    ASSERT_TRUE(fresh.ok()) << fresh.status();
    EXPECT_TRUE((*fresh)[0]);
  }
  stop = true;
  others.join();
  EXPECT_EQ(*(*reader)->Newest(), 304u);
}

TEST(Store, SqliteReaderWritesNothing) {
  const std::string path = TempDir() + "/read.db";
  const auto missing = OpenSqliteStore(path, StoreAccess::kRead);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), testing::HasSubstr(path));
  EXPECT_FALSE(std::filesystem::exists(path));
  {
    auto writer = OpenSqliteStore(path);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->Append({{1, "one"}}).ok());
  }
  std::filesystem::remove(path + "-lock");
  auto reader = OpenSqliteStore(path, StoreAccess::kRead);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_THAT(AllOutcomes(**reader), testing::ElementsAre("1=one"));
  Store& r = **reader;
  for (const absl::Status& status :
       {r.Append({{2, "two"}}).status(), r.LeaseIds(1).status(), r.Trim(2),
        r.SaveSnapshot("a", {1, "x"}), r.GetOrPut("a", "b").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  }
  EXPECT_FALSE(std::filesystem::exists(path + "-lock"));
  EXPECT_TRUE(OpenSqliteStore(path).ok());  // nor does it keep a server out
}

// What `work` returns in a child; 100 if that died.
int InChild(const std::function<int()>& work) {
  const pid_t child = fork();
  if (child == 0) _exit(work());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 100;
}

// A file that may not grow stands for a full disk. What was acknowledged stays, and once there is
// room again the store goes on.
TEST(Store, SqliteSaysWhenTheDiskIsFull) {
  const std::string path = TempDir() + "/full.db";
  EXPECT_EQ(InChild([&] {
              signal(SIGXFSZ, SIG_IGN);
              auto s = OpenSqliteStore(path);
              rlimit limit{};
              getrlimit(RLIMIT_FSIZE, &limit);
              limit.rlim_cur = 1 << 20;
              setrlimit(RLIMIT_FSIZE, &limit);
              absl::Status full;
              uint64_t kept = 0;
              while (kept < 1000 && full.ok()) {
                full = (*s)->Append({{kept + 1, std::string(50'000, 'x')}}).status();
                kept += full.ok();
              }
              if (full.ok() || !absl::StrContains(full.message(), path)) return 1;
              if (!absl::StrContains(full.message(), "File too large")) return 2;
              if (*(*s)->Newest() != kept) return 3;
              limit.rlim_cur = limit.rlim_max;
              setrlimit(RLIMIT_FSIZE, &limit);
              const auto after = (*s)->Append({{kept + 1, "room"}});
              if (!after.ok() || !(*after)[0]) return 4;
              return *(*s)->Newest() == kept + 1 ? 0 : 5;
            }),
            0);
  auto s = OpenSqliteStore(path);
  ASSERT_TRUE(s.ok()) << s.status();
  EXPECT_GT(*(*s)->Newest(), 5u);
}

TEST(Store, SqliteSaysWhenItMayNotWrite) {
  const std::string folder = TempDir();
  const std::string path = folder + "/ours #1.db";
  ASSERT_TRUE((*OpenSqliteStore(path))->Append({{1, "one"}}).ok());
  chmod(path.c_str(), 0444);
  chmod((path + "-lock").c_str(), 0444);
  chmod(folder.c_str(), 0555);
  auto said = [](const absl::Status& status, absl::string_view path) {
    return absl::StrContains(status.message(), path) &&
           absl::StrContains(status.message(), "Permission denied");
  };
  EXPECT_EQ(InChild([&] {
              if (geteuid() == 0 && setuid(65534) != 0) return 1;
              if (!said(OpenSqliteStore(path).status(), path)) return 2;
              if (!said(OpenSqliteStore(folder + "/new.db").status(), folder + "/new.db")) return 3;
              auto reader = OpenSqliteStore(path, StoreAccess::kRead);  // may read all the same
              if (!reader.ok()) return 4;
              return AllOutcomes(**reader) == std::vector<std::string>{"1=one"} ? 0 : 5;
            }),
            0);
  chmod(folder.c_str(), 0755);
}

// Bytes as earlier versions wrote them, put together by hand.
TEST(Record, ReadsWhatEarlierVersionsWrote) {
  using record_internal::Put;
  for (uint8_t version : {1, 2}) {
    std::string old;
    Put(old, version);
    Put<uint64_t>(old, 12);
    Put<uint64_t>(old, 3);
    Put<uint64_t>(old, 77);
    Put<uint32_t>(old, 1);
    Put(old, 0.25);
    if (version > 1) {
      Put<uint64_t>(old, 99);
      Put<uint32_t>(old, 5);
      Put<uint8_t>(old, 2);
    }
    Put<uint8_t>(old, 1);
    Put<uint8_t>(old, 2);
    Put<uint16_t>(old, 1);
    Put<uint16_t>(old, 300);
    Put(old, 0.75);
    Put(old, 0.25);
    Put(old, 1.5f);
    const std::string receipt = old;
    Put(old, 0.5);
    Put<uint8_t>(old, 1);
    Put(old, 0.01);
    Put(old, 1.5);
    const auto read = ParseOutcome(old);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->decision.unit, version > 1 ? 99u : 0u);
    EXPECT_EQ(read->decision.path, std::vector<int32_t>{300});
    EXPECT_EQ(read->decision.intent, (std::vector<double>{0.75, 0.25}));
    EXPECT_EQ(read->quality, 0.5);
    EXPECT_TRUE(read->graded);
    EXPECT_TRUE(read->accepted);
    EXPECT_EQ(read->latency_s, 1.5);
    EXPECT_TRUE(ParseDecision(receipt).ok());
    EXPECT_FALSE(ParseOutcome(old + "x").ok());
  }
}

TEST(Record, ReadsBackAndRefusesDamage) {
  OutcomeRecord o;
  o.decision = {12, 3, 77, 1, 0.25, 99, 5, 2, {4, 300}, {0.5, 0.25, 0.25}, {1.5f, -2}};
  o.decision.unix_ms = 1700000000000;
  o.decision.blocked = {2, 9};
  o.decision.payers = {0xABCDEF0123456789};
  o.unix_ms = 1700000001000;
  o.calls = {{4, false, 0.004, 0.5}, {300, true, 0.006, 1.0}};
  o.quality = 0.75;
  o.accepted = true;
  o.cost_usd = 0.01;
  o.latency_s = 1.5;
  const std::string bytes = SerializeOutcome(o);
  const auto back = ParseOutcome(bytes);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(SerializeOutcome(*back), bytes);
  EXPECT_EQ(back->decision.path, o.decision.path);
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(ParseOutcome(bytes.substr(0, n)).ok());
  EXPECT_FALSE(ParseOutcome(bytes + "x").ok());
  EXPECT_EQ(back->calls.size(), 2u);
  EXPECT_EQ(back->calls[1].cost_usd, 0.006);
  EXPECT_EQ(back->decision.blocked, o.decision.blocked);
  for (uint64_t i = 0; i < 2000; ++i) {  // any flipped byte is refused or read, never worse
    std::string bad = bytes;
    bad[RandomBits({1, i, 0, 0, 0}) % bad.size()] ^=
        static_cast<char>(1 + RandomBits({2, i, 0, 0, 0}) % 255);
    (void)ParseOutcome(bad);
    (void)ParseDecision(bad);
  }
}
}  // namespace store_test
SLUICE_END_NAMESPACE
