// Convolutions for CPUs as XLA custom calls; native.py compiles and registers them.
//
// Images are NHWC and kernels HWIO, float32. A task takes a strip of rows of one image, copies it
// into a zero-padded buffer that stays in the cache, and handles the rows of the output that depend
// on it. Sums have the same order on any number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

#ifdef __AVX512F__
constexpr int N = 16;            // floats in a register
constexpr int ACCUMULATORS = 16;  // registers that hold sums: enough to hide an addition's latency
#else
constexpr int N = 8;
constexpr int ACCUMULATORS = 8;
#endif
constexpr int64_t STRIP = 16384;  // floats in the buffer of a task
constexpr int64_t PARTS = 8;      // in which a kernel's gradient is summed up
typedef float Vector __attribute__((vector_size(4 * N)));
typedef float Unaligned __attribute__((vector_size(4 * N), aligned(4)));

template <int n>
using Size = std::integral_constant<int, n>;

inline Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }

// Runs task(0) .. task(n - 1) on XLA's threads and on the calling one. It waits only for tasks that
// have started, because all other threads may be busy with something that waits for this one.
void parallel(ffi::ThreadPool& pool, int64_t n, std::function<void(int64_t)> task) {
  struct Shared {
    std::function<void(int64_t)> task;
    int64_t n;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
    void work() {
      for (int64_t i; (i = next++) < n;) {
        task(i);
        if (++done == n) {
          std::lock_guard<std::mutex> lock(mutex);
          finished.notify_all();
        }
      }
    }
  };
  auto shared = std::make_shared<Shared>();
  shared->task = std::move(task);
  shared->n = n;
  for (int64_t i = 1; i < std::min(n, pool.num_threads()); ++i)
    pool.Schedule([shared] { shared->work(); });
  shared->work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == n; });
}

struct Convolution {
  int64_t batch, height, width, channels, k_height, k_width, rows, columns, features, stride, pad;

  Convolution(const Array& x, const Array& kernel, const Array& y, int64_t stride, int64_t pad)
      : stride(stride), pad(pad) {
    auto image = x.dimensions(), k = kernel.dimensions(), out = y.dimensions();
    batch = image[0], height = image[1], width = image[2], channels = image[3];
    k_height = k[0], k_width = k[1];
    rows = out[1], columns = out[2], features = out[3];
  }

  int64_t line() const { return (width + 2 * pad) * channels; }  // floats in a padded row
  int64_t step() const { return stride * channels; }  // floats between the inputs of two pixels

  // The inputs that a row of the kernel multiplies are contiguous, and so are its weights.
  int64_t inputs() const { return k_width * channels; }

  int64_t strip_rows() const {  // rows of the output in a strip
    return std::clamp<int64_t>(STRIP / (line() * stride), 1, rows);
  }
  int64_t strips() const { return (rows + strip_rows() - 1) / strip_rows(); }

  // Calls body(padded inputs, first output row, number of output rows) for a strip of an image.
  template <typename Body>
  void strip(const float* x, int64_t image, int64_t index, Body body) const {
    thread_local std::vector<float> buffer;
    const int64_t first = index * strip_rows(), end = std::min(rows, first + strip_rows());
    const int64_t lines = (end - first - 1) * stride + k_height;
    if (buffer.size() < size_t(lines * line())) buffer.resize(lines * line());
    for (int64_t i = 0; i < lines; ++i) {
      const int64_t h = first * stride - pad + i, border = pad * channels, row = width * channels;
      float* out = &buffer[i * line()];
      if (h < 0 || h >= height) {
        std::fill_n(out, line(), 0.0f);
      } else {
        std::fill_n(out, border, 0.0f);
        std::copy_n(x + (image * height + h) * row, row, out + border);
        std::fill_n(out + border + row, border, 0.0f);
      }
    }
    body(&buffer[0], image * rows + first, end - first);
  }
};

// P output pixels and V vectors of features: y[p] = sum over the kernel's rows and inputs of x w.
template <int P, int V>
inline void tile(const Convolution& c, const float* x, const float* w, float* y) {
  Vector sum[P][V] = {};
  for (int64_t k = 0; k < c.k_height; ++k, x += c.line())
    for (int64_t i = 0; i < c.inputs(); ++i, w += V * N) {
      Vector weight[V];
      for (int v = 0; v < V; ++v) weight[v] = load(w + v * N);
      for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) sum[p][v] += x[p * c.step() + i] * weight[v];
    }
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < V; ++v) store(y + p * c.features + v * N, sum[p][v]);
}

template <int P, int V>
void tiles(const Convolution& c, const float* x, const float* w, float* y, int64_t pixels) {
  for (; pixels >= P; pixels -= P, x += P * c.step(), y += P * c.features) tile<P, V>(c, x, w, y);
  if constexpr (P > 1)
    if (pixels) tiles<P / 2, V>(c, x, w, y, pixels);
}

// Calls body(first feature, V, tile size) for blocks of up to four vectors of features.
template <typename Body>
void blocks(int64_t features, Body body) {
  for (int64_t f = 0; f < features; f += 4 * N) switch (std::min<int64_t>(4, (features - f) / N)) {
      case 1: body(f, Size<1>(), Size<ACCUMULATORS>()); break;
      case 2: body(f, Size<2>(), Size<ACCUMULATORS / 2>()); break;
      case 3: body(f, Size<3>(), Size<ACCUMULATORS / 4>()); break;
      case 4: body(f, Size<4>(), Size<ACCUMULATORS / 4>()); break;
    }
}

ffi::Error convolution(ffi::ThreadPool pool, Array x, Array kernel, Result y, int64_t stride,
                       int64_t pad) {
  const Convolution c(x, kernel, *y, stride, pad);
  const int64_t inputs = c.k_height * c.inputs();
  // The kernel in blocks of up to four vectors of features, each block contiguous.
  std::vector<float> weights(inputs * c.features);
  float* w = &weights[0];
  for (int64_t f = 0; f < c.features; f += 4 * N) {
    const int64_t size = std::min<int64_t>(4 * N, c.features - f);
    for (int64_t i = 0; i < inputs; ++i, w += size)
      std::copy_n(kernel.typed_data() + i * c.features + f, size, w);
  }
  parallel(pool, c.batch * c.strips(), [&](int64_t task) {
    auto body = [&](const float* in, int64_t first, int64_t rows) {
      blocks(c.features, [&](int64_t f, auto v, auto p) {
        for (int64_t r = 0; r < rows; ++r)
          tiles<p, v>(c, in + r * c.stride * c.line(), &weights[f * inputs],
                      y->typed_data() + (first + r) * c.columns * c.features + f, c.columns);
      });
    };
    c.strip(x.typed_data(), task / c.strips(), task % c.strips(), body);
  });
  return ffi::Error::Success();
}

// Q inputs and V vectors of features: w[q] += sum over the pixels of a strip of x[q] g.
template <int Q, int V>
inline void outer(const Convolution& c, const float* x, const float* g, int64_t rows, float* w) {
  Vector sum[Q][V];
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) sum[q][v] = load(w + q * c.features + v * N);
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = x + r * c.stride * c.line();
    for (int64_t p = 0; p < c.columns; ++p, in += c.step(), g += c.features) {
      Vector grad[V];
      for (int v = 0; v < V; ++v) grad[v] = load(g + v * N);
      for (int q = 0; q < Q; ++q)
        for (int v = 0; v < V; ++v) sum[q][v] += in[q] * grad[v];
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) store(w + q * c.features + v * N, sum[q][v]);
}

template <int Q, int V>
void outers(const Convolution& c, const float* x, const float* g, int64_t rows, float* w,
            int64_t inputs) {
  for (; inputs >= Q; inputs -= Q, x += Q, w += Q * c.features) outer<Q, V>(c, x, g, rows, w);
  if constexpr (Q > 1)
    if (inputs) outers<Q / 2, V>(c, x, g, rows, w, inputs);
}

// Sums add(padded inputs, first output row, number of rows, sums) over strips, in a fixed order.
template <typename Add>
void sum_strips(ffi::ThreadPool& pool, const Convolution& c, const float* x, Result& result,
                Add add) {
  const int64_t size = result->element_count(), tasks = c.batch * c.strips();
  std::vector<float> parts(PARTS * size, 0.0f);
  parallel(pool, PARTS, [&](int64_t part) {
    for (int64_t task = part * tasks / PARTS; task < (part + 1) * tasks / PARTS; ++task)
      c.strip(x, task / c.strips(), task % c.strips(),
              [&](const float* in, int64_t first, int64_t rows) {
                add(in, first, rows, &parts[part * size]);
              });
  });
  float* out = result->typed_data();
  std::copy_n(&parts[0], size, out);
  for (int64_t part = 1; part < PARTS; ++part)
    for (int64_t i = 0; i < size; ++i) out[i] += parts[part * size + i];
}

ffi::Error kernel_gradient(ffi::ThreadPool pool, Array x, Array g, Result kernel, int64_t stride,
                           int64_t pad) {
  const Convolution c(x, *kernel, g, stride, pad);
  auto add = [&](const float* in, int64_t first, int64_t rows, float* w) {
    blocks(c.features, [&](int64_t f, auto v, auto q) {
      for (int64_t k = 0; k < c.k_height; ++k)
        outers<q, v>(c, in + k * c.line(), g.typed_data() + first * c.columns * c.features + f,
                     rows, w + k * c.inputs() * c.features + f, c.inputs());
    });
  };
  sum_strips(pool, c, x.typed_data(), kernel, add);
  return ffi::Error::Success();
}

// Calls body(first channel, number of channels) for all channels, a vector at a time.
template <typename Body>
inline void by_vector(int64_t channels, Body body) {
  int64_t i = 0;
  for (; i + N <= channels; i += N) body(i, Size<N>());
  for (; i < channels; ++i) body(i, Size<1>());
}

inline Vector load(const float* p, Size<N>) { return load(p); }
inline float load(const float* p, Size<1>) { return *p; }
inline void store(float* p, Vector v, Size<N>) { store(p, v); }
inline void store(float* p, float v, Size<1>) { *p = v; }

constexpr int TAPS = 9;  // depthwise kernels are 3x3

// Offset of the input that a tap multiplies, from the first.
inline int64_t offset(const Convolution& c, int t) { return t / 3 * c.line() + t % 3 * c.channels; }

ffi::Error depthwise(ffi::ThreadPool pool, Array x, Array kernel, Result y, int64_t stride,
                     int64_t pad) {
  const Convolution c(x, kernel, *y, stride, pad);
  parallel(pool, c.batch * c.strips(), [&](int64_t task) {
    auto body = [&](const float* in, int64_t first, int64_t rows) {
      by_vector(c.channels, [&](int64_t i, auto size) {
        decltype(load(in, size)) w[TAPS];
        for (int t = 0; t < TAPS; ++t) w[t] = load(kernel.typed_data() + t * c.channels + i, size);
        float* out = y->typed_data() + first * c.columns * c.channels + i;
        for (int64_t r = 0; r < rows; ++r) {
          const float* input = in + r * c.stride * c.line() + i;
          for (int64_t p = 0; p < c.columns; ++p, input += c.step(), out += c.channels) {
            auto sum = w[0] * load(input, size);
            for (int t = 1; t < TAPS; ++t) sum += w[t] * load(input + offset(c, t), size);
            store(out, sum, size);
          }
        }
      });
    };
    c.strip(x.typed_data(), task / c.strips(), task % c.strips(), body);
  });
  return ffi::Error::Success();
}

ffi::Error depthwise_kernel_gradient(ffi::ThreadPool pool, Array x, Array g, Result kernel,
                                     int64_t stride, int64_t pad) {
  const Convolution c(x, *kernel, g, stride, pad);
  auto add = [&](const float* in, int64_t first, int64_t rows, float* w) {
    by_vector(c.channels, [&](int64_t i, auto size) {
      decltype(load(in, size)) sum[TAPS];
      for (int t = 0; t < TAPS; ++t) sum[t] = load(w + t * c.channels + i, size);
      const float* grad = g.typed_data() + first * c.columns * c.channels + i;
      for (int64_t r = 0; r < rows; ++r) {
        const float* input = in + r * c.stride * c.line() + i;
        for (int64_t p = 0; p < c.columns; ++p, input += c.step(), grad += c.channels) {
          const auto pixel = load(grad, size);
          for (int t = 0; t < TAPS; ++t) sum[t] += pixel * load(input + offset(c, t), size);
        }
      }
      for (int t = 0; t < TAPS; ++t) store(w + t * c.channels + i, sum[t], size);
    });
  };
  sum_strips(pool, c, x.typed_data(), kernel, add);
  return ffi::Error::Success();
}

#define REGISTER(symbol, function)                        \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function,         \
                                ffi::Ffi::Bind()          \
                                    .Ctx<ffi::ThreadPool>() \
                                    .Arg<Array>()         \
                                    .Arg<Array>()         \
                                    .Ret<Array>()         \
                                    .Attr<int64_t>("stride") \
                                    .Attr<int64_t>("pad"))

REGISTER(Convolve, convolution);
REGISTER(KernelGradient, kernel_gradient);
REGISTER(Depthwise, depthwise);
REGISTER(DepthwiseKernelGradient, depthwise_kernel_gradient);
