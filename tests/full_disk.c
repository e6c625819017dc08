/* A full disk: preloaded into a process, it lets calls below one folder fail with ENOSPC.

   Those that take room: opening a file to create it, write, mkdir, rename, ftruncate and fsync. What
   glibc calls inside itself (buffered fwrite) passes. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096], match[256];
static size_t length;
static long first, last, count;
static int trace = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Of the calls below `where` whose text "call /path " contains `what`, those with numbers from `from`
   to `to` fail (the first has number 1). All that are counted are written into the file `log`. */
void full_disk_arm(const char *where, const char *what, long from, long to, const char *log) {
  pthread_mutex_lock(&mutex);
  count = 0, first = from, last = to;
  length = strlen(where);
  memcpy(folder, where, length + 1);
  strncpy(match, what, sizeof match - 1);
  if (trace >= 0) close(trace);
  trace = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  pthread_mutex_unlock(&mutex);
}

static int full(const char *call, const char *path) {
  char line[4200];
  int fails, size;
  if (!length || !path || strncmp(path, folder, length)) return 0;
  snprintf(line, sizeof line, "%s %s ", call, path + length);
  if (!strstr(line, match)) return 0;
  pthread_mutex_lock(&mutex);
  count++;
  fails = first <= count && count <= last;
  size = snprintf(line, sizeof line, "%s %s%s\n", call, path + length, fails ? " FAILS" : "");
  syscall(SYS_write, trace, line, (size_t)size);
  pthread_mutex_unlock(&mutex);
  if (fails) errno = ENOSPC;
  return fails;
}

static int full_fd(const char *call, int fd) {
  char link[64], path[4096];
  ssize_t size;
  if (!length) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return full(call, path);
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name, parameters, ...) \
  int name parameters { \
    va_list rest; \
    mode_t mode = 0; \
    REAL(name); \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
      va_start(rest, flags); \
      mode = va_arg(rest, mode_t); \
      va_end(rest); \
    } \
    if (flags & O_CREAT && full("open", path)) return -1; \
    return real(__VA_ARGS__, mode); \
  }
OPEN(open, (const char *path, int flags, ...), path, flags)
OPEN(open64, (const char *path, int flags, ...), path, flags)
OPEN(openat, (int at, const char *path, int flags, ...), at, path, flags)
OPEN(openat64, (int at, const char *path, int flags, ...), at, path, flags)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(name); \
    if (strpbrk(mode, "wa") && full("open", path)) return NULL; \
    return real(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

#define ON_FD(type, name, call, parameters, ...) \
  type name parameters { \
    REAL(name); \
    return full_fd(call, fd) ? -1 : real(__VA_ARGS__); \
  }
ON_FD(ssize_t, write, "write", (int fd, const void *data, size_t size), fd, data, size)
ON_FD(ssize_t, writev, "write", (int fd, const struct iovec *parts, int num), fd, parts, num)
ON_FD(ssize_t, pwrite, "write", (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
ON_FD(ssize_t, pwrite64, "write", (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
ON_FD(int, ftruncate, "ftruncate", (int fd, off_t size), fd, size)
ON_FD(int, ftruncate64, "ftruncate", (int fd, off64_t size), fd, size)
ON_FD(int, fsync, "fsync", (int fd), fd)
ON_FD(int, fdatasync, "fsync", (int fd), fd)

#define ON_PATH(name, call, path, parameters, ...) \
  int name parameters { \
    REAL(name); \
    return full(call, path) ? -1 : real(__VA_ARGS__); \
  }
ON_PATH(mkdir, "mkdir", path, (const char *path, mode_t mode), path, mode)
ON_PATH(mkdirat, "mkdir", path, (int at, const char *path, mode_t mode), at, path, mode)
ON_PATH(rename, "rename", to, (const char *from, const char *to), from, to)
ON_PATH(renameat, "rename", to, (int at, const char *from, int bt, const char *to), at, from, bt, to)
