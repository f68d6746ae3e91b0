#include "sluice/runtime/dynload/child_check.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
namespace child_check_test {
using std::chrono::milliseconds;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;
using Said = absl::StatusOr<std::string>;

// Long enough for a busy machine, short enough for a test that reaches it.
constexpr milliseconds kShort{300};
// A check that does not return by then has been kept waiting.
constexpr milliseconds kPrompt{5000};

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/sluice-child-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

 private:
  std::string path_;
};

std::string Content(const std::string& path) {
  std::ifstream f(path);
  return {std::istreambuf_iterator<char>(f), std::istreambuf_iterator<char>()};
}

TEST(CheckInChild, ReturnsWhatWasReturnedThere) {
  const pid_t self = getpid();
  const Said text = CheckInChild([&]() -> Said {
    return absl::StrCat(getpid() == self ? "here" : "there", std::string(1, '\0'), "x");
  });
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, std::string("there\0x", 7));
  EXPECT_EQ(*CheckInChild([]() -> Said { return ""; }), "");
  const Said error = CheckInChild([]() -> Said { return absl::NotFoundError("no such thing"); });
  EXPECT_EQ(error.status(), absl::NotFoundError("no such thing"));
}

TEST(CheckInChild, EndsAreNamed) {
  EXPECT_THAT(CheckInChild([]() -> Said { abort(); }).status().message(), HasSubstr("signal 6"));
  EXPECT_THAT(CheckInChild([]() -> Said { throw std::runtime_error("x"); }).status().message(),
              HasSubstr("signal 6"));
  for (int status : {0, 3}) {
    const Said said = CheckInChild([&]() -> Said { _exit(status); });
    EXPECT_THAT(said.status().message(), HasSubstr("ends the process")) << status;
  }
  EXPECT_THAT(CheckInChild([]() -> Said { return std::string(2 << 20, 'x'); }).status().message(),
              HasSubstr("2097152 bytes of itself, at most 1048576"));
  EXPECT_THAT(CheckInChild([]() -> Said { return "x"; }, milliseconds(0)).status().message(),
              HasSubstr("a time limit of 0 ms, wanted above 0"));
}

TEST(CheckInChild, WhatNeverEndsIsKilled) {
  const auto begin = Clock::now();
  const Said sleeps = CheckInChild(
      []() -> Said {
        while (true) pause();
      },
      kShort);
  EXPECT_EQ(sleeps.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(sleeps.status().message(), HasSubstr("within 0.3 s"));
  const Said stops = CheckInChild(
      []() -> Said {
        raise(SIGSTOP);
        return "";
      },
      kShort);
  EXPECT_EQ(stops.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(Clock::now() - begin, kPrompt);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child was left";
}

// Whoever is left of the child holds a lock: it is free when all of them are gone.
TEST(CheckInChild, WhatItLeavesBehindNeitherKeepsItWaitingNorLives) {
  const Folder folder;
  for (bool returns : {true, false}) {
    const std::string file = folder / (returns ? "returns" : "never");
    const auto begin = Clock::now();
    const Said said = CheckInChild(
        [&]() -> Said {
          const int lock = open(file.c_str(), O_CREAT | O_RDWR, 0600);
          if (flock(lock, LOCK_EX) != 0) return absl::InternalError("no lock");
          if (write(lock, "held", 4) != 4) return absl::InternalError("no write");
          if (fork() == 0 || !returns) {
            while (true) pause();
          }
          return "done";
        },
        returns ? kChildCheckLimit : kShort);
    EXPECT_EQ(said.ok(), returns) << said.status();
    EXPECT_LT(Clock::now() - begin, kPrompt);
    EXPECT_EQ(Content(file), "held");
    const int lock = open(file.c_str(), O_RDWR | O_CLOEXEC);
    while (flock(lock, LOCK_EX | LOCK_NB) != 0 && Clock::now() - begin < kPrompt) usleep(1000);
    EXPECT_EQ(flock(lock, LOCK_EX | LOCK_NB), 0) << "someone is left";
    close(lock);
  }
}

TEST(CheckInChild, ForkThatReturnsTwiceAnswersOnce) {
  const pid_t self = getpid();
  const Said said = CheckInChild([&]() -> Said {
    const pid_t other = fork();
    if (other == 0) return "the grandchild";
    waitpid(other, nullptr, 0);
    return getppid() == self ? "the child" : "?";
  });
  ASSERT_TRUE(said.ok()) << said.status();
  EXPECT_EQ(*said, "the child");
}

TEST(CheckInChild, NothingWrittenPassesForAnAnswer) {
  const Folder folder;
  const std::string file = folder / "host";
  const int host = open(file.c_str(), O_CREAT | O_RDWR, 0600);
  ASSERT_GE(host, 0);
  for (bool leaves : {true, false}) {
    const Said said = CheckInChild([&]() -> Said {
      for (int fd = 0; fd < 1024; ++fd) {
        if (fd != STDERR_FILENO) (void)!write(fd, "+attention/forged\n", 18);
      }
      if (leaves) _exit(0);
      return absl::InternalError("the true answer");
    });
    EXPECT_THAT(said.status().message(),
                HasSubstr(leaves ? "ends the process" : "the true answer"));
  }
  EXPECT_EQ(Content(file), "") << "the host's file was written to";
  close(host);
}

TEST(CheckInChild, HandlersOfTheHostDoNotRun) {
  const Folder folder;
  static std::string trace;
  trace = folder / "trace";
  const auto leave_a_trace = [](int) { std::ofstream(trace) << "ran"; };
  const auto before = signal(SIGABRT, leave_a_trace);
  // In a process of its own, as an exit handler stays for as long as its process does.
  const pid_t host = fork();
  if (host == 0) {
    std::atexit([] { std::ofstream(trace) << "ran"; });
    const Said exits = CheckInChild([]() -> Said { exit(0); });
    const bool found = absl::StrContains(exits.status().message(), "ends the process");
    const Said aborts = CheckInChild([]() -> Said { abort(); });
    _exit(found && absl::StrContains(aborts.status().message(), "signal 6") ? 0 : 1);
  }
  int status = 0;
  waitpid(host, &status, 0);
  signal(SIGABRT, before);
  EXPECT_EQ(status, 0);
  EXPECT_FALSE(std::filesystem::exists(trace));
}

TEST(CheckInChild, WorksInAHostThatReapsEveryChild) {
  const auto before = signal(SIGCHLD, SIG_IGN);
  EXPECT_EQ(*CheckInChild([]() -> Said { return "text"; }), "text");
  EXPECT_FALSE(CheckInChild([]() -> Said { _exit(0); }).ok());
  EXPECT_FALSE(CheckInChild([]() -> Said { abort(); }).ok());
  signal(SIGCHLD, before);
}

TEST(OpenRegularFile, RefusesTheRest) {
  const Folder folder;
  std::ofstream(folder / "file") << "text";
  ASSERT_EQ(mkfifo((folder / "fifo").c_str(), 0600), 0);
  std::filesystem::create_symlink(folder / "file", folder / "to_file");
  std::filesystem::create_symlink(folder / "fifo", folder / "to_fifo");
  for (const char* name : {"file", "to_file"}) {
    const absl::StatusOr<int> fd = OpenRegularFile(folder / name);
    ASSERT_TRUE(fd.ok()) << fd.status();
    EXPECT_EQ(fcntl(*fd, F_GETFD), FD_CLOEXEC);
    close(*fd);
  }
  const auto why = [](const std::string& path) {
    return std::string(OpenRegularFile(path).status().message());
  };
  EXPECT_THAT(why(folder / "fifo"), HasSubstr("it is a FIFO, wanted a regular file"));
  EXPECT_THAT(why(folder / "to_fifo"), HasSubstr("it is a FIFO, wanted a regular file"));
  EXPECT_THAT(why(folder / ""), HasSubstr("it is a directory, wanted a regular file"));
  EXPECT_THAT(why("/dev/zero"), HasSubstr("/dev/zero: it is a device, wanted a regular file"));
  EXPECT_THAT(why(folder / "none"), HasSubstr("cannot be read: No such file"));
}
}  // namespace child_check_test
SLUICE_END_NAMESPACE
