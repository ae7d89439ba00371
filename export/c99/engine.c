/* The layers, in integer arithmetic that reproduces onnxruntime's float32 rounding bit for bit.

   onnxruntime converts an int32 sum to float32, multiplies it by a float32 scale and rounds the product to the nearest
   integer, ties to even. `real` carries such a float32 value as an integer mantissa of at most 24 bits with an
   exponent; every operation on it rounds to 24 bits, ties to even. */

typedef struct {
    uint32_t mantissa; /* the value is mantissa * 2^exponent, never negative */
    int exponent;
} real;

/* value / 2^count, rounded to the nearest integer, ties to even. */
static uint64_t shift_right(uint64_t value, int count)
{
    uint64_t quotient, rest, half;

    if (count == 0)
        return value;
    if (count > 63)
        return 0; /* every value here is below 2^63 */
    quotient = value >> count;
    rest = value - (quotient << count);
    half = (uint64_t)1 << (count - 1);
    return quotient + (rest > half || (rest == half && (quotient & 1)));
}

/* mantissa * 2^exponent as a float32. */
static real rounded(uint64_t mantissa, int exponent)
{
    real result;
    int excess = 0;

    while (mantissa >> excess >> 24)
        excess++;
    result.mantissa = (uint32_t)shift_right(mantissa, excess);
    result.exponent = exponent + excess;
    return result;
}

static real from_bits(uint32_t bits) /* of a positive normal float32 */
{
    real result;

    result.mantissa = (bits & 0x7fffff) | 0x800000;
    result.exponent = (int)(bits >> 23) - 150;
    return result;
}

static uint32_t to_bits(real value)
{
    if (value.mantissa == 0)
        return 0;
    for (; value.mantissa < 0x800000; value.exponent--)
        value.mantissa <<= 1;
    if (value.mantissa == 0x1000000) {
        value.mantissa >>= 1;
        value.exponent++;
    }
    return ((uint32_t)(value.exponent + 150) << 23) | (value.mantissa & 0x7fffff);
}

static real multiply(real a, real b)
{
    return rounded((uint64_t)a.mantissa * b.mantissa, a.exponent + b.exponent);
}

/* The nearest integer, ties to even; at most 256, where every output is saturated. */
static int32_t nearest(real value)
{
    uint64_t result = 256;

    if (value.exponent < 0)
        result = shift_right(value.mantissa, -value.exponent);
    else if (value.exponent < 8)
        result = (uint64_t)value.mantissa << value.exponent;
    return result < 256 ? (int32_t)result : 256;
}

/* The float32 value of |sum| * scale. */
static real scaled(int32_t sum, uint32_t scale)
{
    uint32_t magnitude = sum < 0 ? 0 - (uint32_t)sum : (uint32_t)sum;

    return multiply(rounded(magnitude, 0), from_bits(scale));
}

static uint8_t requantize(int32_t sum, uint32_t scale, int32_t zero)
{
    int32_t steps = nearest(scaled(sum, scale));
    int32_t value = zero + (sum < 0 ? -steps : steps);

    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* The sum of one output of a convolution; taps outside the map are zero. */
static int32_t convolve(const layer *l, const uint8_t *x, int32_t top, int32_t left, int32_t channel)
{
    const int8_t *w = l->weights + channel * l->kernel_height * l->kernel_width * l->channels;
    int32_t sum = l->bias[channel];
    int32_t row, column, c;

    for (row = top; row < top + l->kernel_height; row++)
        for (column = left; column < left + l->kernel_width; column++, w += l->channels)
            if (row >= 0 && row < l->height && column >= 0 && column < l->width) {
                const uint8_t *pixel = x + (row * l->width + column) * l->channels;

                for (c = 0; c < l->channels; c++)
                    sum += (pixel[c] - l->zero) * w[c];
            }
    return sum;
}

/* A convolution and its max-pool: the largest sum becomes the largest output, because scales are positive. */
static void conv(const layer *l, const uint8_t *x, uint8_t *y)
{
    int32_t row, column, channel, i;

    for (row = 0; row < l->out_height; row++)
        for (column = 0; column < l->out_width; column++)
            for (channel = 0; channel < l->out_channels; channel++) {
                int32_t largest = INT32_MIN;

                for (i = 0; i < l->pool * l->pool; i++) {
                    int32_t top = (row * l->pool + i / l->pool) * l->stride_y - l->pad_top;
                    int32_t left = (column * l->pool + i % l->pool) * l->stride_x - l->pad_left;
                    int32_t sum = convolve(l, x, top, left, channel);

                    if (sum > largest)
                        largest = sum;
                }
                *y++ = requantize(largest, l->scales[channel], l->out_zero);
            }
}

/* The mean over the map of each channel; its scale includes the division by the size. */
static void mean(const uint8_t *x, int32_t size, int32_t channels, uint8_t *y)
{
    int32_t channel, i;

    for (channel = 0; channel < channels; channel++) {
        int32_t sum = 0;

        for (i = 0; i < size; i++)
            sum += x[i * channels + channel] - MEAN_ZERO;
        y[channel] = requantize(sum, MEAN_SCALE, MEAN_OUT_ZERO);
    }
}

int student_classify(const uint8_t pixels[STUDENT_PIXELS], float logits[STUDENT_CLASSES])
{
    static uint8_t even[EVEN_BYTES], odd[ODD_BYTES]; /* the outputs of layers 0, 2, .. and 1, 3, .. */
    uint8_t *const maps[] = {even, odd};
    const layer *last = &layers[sizeof layers / sizeof layers[0] - 1];
    const layer *l;
    const uint8_t *x = pixels;
    int32_t best_key = INT32_MIN, channel;
    int best = 0, index = 0;

    for (l = layers; l < last; l++, index = !index) {
        conv(l, x, maps[index]);
        x = maps[index];
    }
    mean(x, l[-1].out_height * l[-1].out_width, last->channels, maps[index]);
    for (channel = 0; channel < STUDENT_CLASSES; channel++) {
        int32_t sum = convolve(last, maps[index], 0, 0, channel);
        uint32_t bits = to_bits(scaled(sum, last->scales[channel]));
        int32_t key = sum < 0 ? -(int32_t)bits : (int32_t)bits; /* in the order of the logits */

        if (key > best_key) {
            best_key = key;
            best = channel;
        }
        if (sum < 0)
            bits |= (uint32_t)1 << 31;
        memcpy(&logits[channel], &bits, sizeof bits);
    }
    return best;
}
