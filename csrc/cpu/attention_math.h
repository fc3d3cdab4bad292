// exp2 and tanh of a Vec, included once per instruction set (see cpu/attention_kernel.h).

namespace ruprompt {
namespace {

constexpr float kSmallestExponent = -125.0f;

// 2^x for x up to 127: the whole part of x goes to the exponent, the rest r through a polynomial for (2^r - 1) / r on
// [-0.5, 0.5], fitted in Chebyshev nodes. Relative error below 1e-7; 2^0 is 1; below 2^-125 zero; a NaN stays.
RUPROMPT_VEC Vec exp2(Vec x) {
  const Vec whole = round(x);
  const Vec rest = sub(x, whole);
  Vec y = splat(0.00015461447765119374f);
  y = fma(y, rest, splat(0.0013390866806730628f));
  y = fma(y, rest, splat(0.009618056938052177f));
  y = fma(y, rest, splat(0.055503569543361664f));
  y = fma(y, rest, splat(0.24022650718688965f));
  y = fma(y, rest, splat(0.6931471824645996f));
  return scale(fma(y, rest, splat(1.0f)), whole, x, kSmallestExponent);
}

// After tanhf of the Cephes library (S. L. Moshier): a polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel.
RUPROMPT_VEC Vec tanh(Vec x) {
  const Vec size = min(splat(10.0f), absolute(x));
  const Vec power = exp2(mul(size, splat(2.88539008f)));
  const Vec far = with_sign(sub(splat(1.0f), div(splat(2.0f), add(power, splat(1.0f)))), x);
  const Vec square = mul(x, x);
  Vec y = splat(-5.70498872745e-3f);
  y = fma(y, square, splat(2.06390887954e-2f));
  y = fma(y, square, splat(-5.37397155531e-2f));
  y = fma(y, square, splat(1.33314422036e-1f));
  y = fma(y, square, splat(-3.33332819422e-1f));
  return where_less(size, 0.625f, fma(mul(y, square), x, x), far);
}

}  // namespace
}  // namespace ruprompt
