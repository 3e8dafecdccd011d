import ml_collections
def get_config():
    return ml_collections.ConfigDict(dict(method='sleep',data_dir='/work/shared/data',model=dict(width=192,layers=4,heads=6,kv_heads=6,head_size=32,ff=512,unroll=4,max_len=64),stream=dict(source='clinc150'),birth=dict(epochs=10,batch_rows=32,optim=dict(lr=2e-3,weight_decay=0.1)),vocab_size=1024,
    sleep=dict(steps=400,batch_rows=32,old_dreams=5000,new_dreams=1500),wake=dict(passes=6,rule='adam',lr=(1e-3,)),memory=dict(periods=(512,))))
