"""mmsegmentation's segmentor, tested on whole images. A part of recipes."""

model = dict(type="EncoderDecoder", train_cfg=dict(), test_cfg=dict(mode="whole"))
